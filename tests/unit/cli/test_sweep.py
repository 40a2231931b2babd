"""`sweep` on tiny models: what is told before the first trial, and two trials of a few steps."""

import json
import os

import pytest
import yaml

from distill_tune.cli.main import main
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config
from distill_tune.sweep.trials import Trials


@pytest.fixture
def config(write_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_config(dataset_val="${dataset}", max_steps_per_epoch=2)


def told(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(["sweep", *arguments])
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["kd_ratio=0.5"], "sweep: no key has several values"),
        (["kd_ratio=0.5,1.5", "temperature=1,2"], "kd_ratio=1.5: must be a number from 0 to 1"),
        (["kd_raito=0.5,0.6"], "kd_raito: no such key, did you mean kd_ratio?"),
        (["kd_ratio=0.5,0.6", "~dataset_val"], "dataset_val: missing; trials are compared on its rows"),
        (
            ["kd_ratio=0.5,0.6", "dataset_test=${dataset}", "~dataset_val", "--objective", "val_ce_loss"],
            "set '+dataset_val=${dataset_test}', or take --objective bits_per_byte, for which dataset_test will do",
        ),
        (["dataset.split=train,train[:50%]"], "cannot compare trials where dataset_val.split varies"),  # its ${dataset}
        (["kd_ratio=0.5,0.6", "--objective", "val_loss"], "cannot compare trials where kd_ratio varies"),
        (["kd_ratio=0.5,0.6", "--objective", "kl", "~teacher_model"], "teacher_model: missing"),
        (["output_dir=a,b"], "output_dir: cannot vary"),
        (["kd_ratio=0.5,0.6", "resume=auto"], "resume: each trial has its own"),
        (["kd_ratio=0.5,0.6", "evaluation_folder=results"], "evaluation_folder: each trial has its own"),
        (["kd_ratio=0.5,0.6", "models={after: outputs/mine}"], "models.after: would be measured in each trial's place"),
        (["tokenizer.max_seq_len=64,128"], "cannot compare trials where tokenizer.max_seq_len varies"),
        (["optimizer.lr=1e-5..1e-3"], "a range has no grid"),
        (["kd_ratio=0.5,0.6", "--random", "0"], "--random: 0: must be a whole number of at least 1"),
        (["kd_ratio=0.5,0.6", "--random", "3"], "there are 2 combinations"),
        (["kd_ratio=0.5,0.6", "--devices", "0,0"], "--devices 0,0: must be different numbers"),
        (["kd_ratio=0.5,0.6", "--gpu", "A100"], "--gpu A100: goes with --plan"),
        (["kd_ratio=0.5,0.6", "model.embed_dim=32,48"], "model: "),  # found where models are made
    ],
)
def test_what_is_wrong_with_any_trial_is_told_before_the_first(config, capsys, tmp_path, monkeypatch, arguments, error):
    monkeypatch.setattr("distill_tune.sweep.run.run_sweep", lambda asked: pytest.fail("it begins"))
    assert error in told(capsys, "--config", str(config), *arguments)
    assert not (tmp_path / "out_sweep").exists()


def test_a_recipe_that_trains_nothing_is_refused(config, capsys):
    for recipe in ("generate", "teacher_cache", "evaluate"):
        assert "it trains nothing" in told(capsys, recipe, "--config", str(config), "kd_ratio=0.5,0.6")


def test_a_plan_tells_what_all_trials_take_and_runs_none(config, capsys, tmp_path):
    line = ["--config", str(config), "kd_ratio=0,0.5", "temperature=1,2", "--plan", "--gpu", "A100"]
    main(["sweep", "kd_single_device", *line])
    out = capsys.readouterr().out
    assert f"4 trials, in {tmp_path / 'out_sweep'}, by bits_per_byte:\n  kd_ratio: 0, 0.5\n  temperature: 1, 2\n" in out
    assert "then the best 2 again with seeds 1 and 2, until none is better: 8 runs or more\neach: 2 steps, " in out
    assert " PFLOP for 8 runs" in out
    assert not (tmp_path / "out_sweep").exists()


def test_a_trials_results_are_read_where_they_are_written_whatever_its_config_says(config, capsys, monkeypatch):
    commands = []
    monkeypatch.setattr("distill_tune.sweep.run.run_sweep", commands.append)
    config.write_text(config.read_text() + "\nevaluation_folder: elsewhere\n")
    main(["sweep", "kd_single_device", "--config", str(config), "kd_ratio=0.5,0.6"])
    (asked,) = commands
    trials = Trials(asked.folder)
    evaluation = asked.commands_of(trials, trials.add({"kd_ratio": "0.5"}, 0))[1]
    assert evaluation[-2:] == ["+models.before=null", "~evaluation_folder"]  # the untrained student is the same for all


def test_what_evaluation_alone_reads_goes_to_it_but_for_what_training_takes_values_from(
    write_config, rows_file, monkeypatch
):
    commands = []
    monkeypatch.setattr("distill_tune.sweep.run.run_sweep", commands.append)
    rows = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config = write_config(dataset_test=rows, dataset_val="${dataset_test}")
    line = ["kd_ratio=0.5,0.6", "dataset_test.split=train[:50%]", "window=64"]
    main(["sweep", "kd_single_device", "--config", str(config), *line])
    (asked,) = commands
    trials = Trials(asked.folder)
    training, evaluation = asked.commands_of(trials, trials.add({"kd_ratio": "0.5"}, 0))
    assert "dataset_test.split=train[:50%]" in training and "window=64" not in training
    assert "dataset_test.split=train[:50%]" not in evaluation and "window=64" in evaluation


def test_the_best_is_run_by_as_many_processes_as_its_trial(config, monkeypatch):
    monkeypatch.setattr("distill_tune.cli.checked_sweep.check", lambda asked, runs: None)
    commands = []
    monkeypatch.setattr("distill_tune.sweep.run.run_sweep", commands.append)
    launched = ["--nproc_per_node", "2", "kd_distributed", "--config"]
    main(["sweep", *launched, str(config), "kd_ratio=0.5,0.6"])
    assert commands[0].run_of("best.yaml") == ["run", *launched, "best.yaml"]


def test_trials_are_runs_of_their_own_of_which_a_failure_ends_one(config, command_server, tmp_path):
    line = ["-m", "distill_tune", "sweep", "kd_single_device", "--config", config, "optimizer.lr=1e-3,1e30"]
    line += ["max_bad_steps=1", "--objective", "val_ce_loss", "--repeat", 0, "--folder", "lr", "epochs=2"]
    done = command_server.start([*map(str, line)], tmp_path, os.environ, output=tmp_path, starting=3).completed()
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(trial) for trial in (tmp_path / "lr" / "trials.jsonl").read_text().splitlines())
    assert (first["state"], second["state"]) == ("finished", "failed")
    assert second["said"] in done.stdout and "not finite" in second["said"]
    assert (tmp_path / "lr" / "trial_1" / "model" / "model.safetensors").is_file()
    assert f"| 1 | 1e-3 | {first['figures']['val_ce_loss']:.4f} |" in (tmp_path / "lr" / "table.md").read_text()

    assert "trial_1 lr=1e-3" in (tmp_path / "lr" / "report.html").read_text()

    best = load_config(find_config(str(tmp_path / "lr" / "best.yaml")))
    assert (best.optimizer.lr, best.output_dir, best.checkpointer.output_dir) == (1e-3, "lr/best", "lr/best")
    assert "resume" not in best and "keep_last_n" not in best
    as_run = yaml.safe_load((tmp_path / "lr" / "trial_1" / "config.yaml").read_text())
    assert best.teacher_model == as_run["teacher_model"]
