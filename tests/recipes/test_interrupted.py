"""Runs that are killed, stopped, resumed, fed with what is not finite, or short of memory, through the real CLI."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import MEASURED, edit_recipe, metrics_of, model_arguments

KILLS = int(os.environ.get("DISTILL_TUNE_TEST_KILLS", 8))  # at least; more where there is time
STEPS = ["epochs=2", "max_steps_per_epoch=6", "batch_size=2", "gradient_accumulation_steps=2"]
RUN = ["run", "kd_single_device", "--config", "config.yaml"]


@pytest.fixture
def lora(write_config, student_folder):
    """config.yaml with dropout, so that random state matters, and a schedule, so that the step does."""
    adapters = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4, "lora_dropout": 0.1}

    def write(**changes: object) -> Path:
        return write_config(
            **{
                "model": {"_component_": "distill_tune.models.lora_from_hf", "path": str(student_folder), **adapters},
                "checkpointer": None,
                "lr_scheduler": {
                    "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
                    "num_warmup_steps": 2,
                },
                "save_every_n_steps": 1,
                "resume": "auto",
            }
            | changes
        )

    return write


@pytest.fixture
def ok(cli):
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture
def edited(cli, tmp_path):
    """mine.py: the recipe with lines put before its call of loss_of; arguments that run it."""

    def edit(lines: str) -> list[str]:
        return ["run", edit_recipe(cli, tmp_path, "kd_single_device", lines), "--config", "config.yaml"]

    return edit


def learned(folder: Path) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What two runs must have in common: metrics of all steps, and the adapter."""
    lines = [{key: line[key] for key in line.keys() - MEASURED} for line in metrics_of(folder)]
    return lines, load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_same(one: Path, other: Path) -> None:
    (lines, weights), (other_lines, other_weights) = learned(one), learned(other)
    assert lines == other_lines
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


def test_killed_at_random_moments_a_run_ends_with_the_same_bits(lora, ok, start_cli, tmp_path):
    lora()
    ok("ls")  # once something has run, the next begins at once
    started = time.monotonic()
    ok(*RUN, *STEPS, f"output_dir={tmp_path / 'whole'}")
    seconds = time.monotonic() - started
    draws, kills, resumed = random.Random(7), 0, set()
    for _ in range(10 * KILLS):
        try:
            done = start_cli(*RUN, *STEPS, "output_dir=out").completed(timeout=seconds * draws.uniform(0.1, 0.9))
        except subprocess.TimeoutExpired as killed:  # by SIGKILL
            kills += 1
            told, errors = str(killed.output), str(killed.stderr)
        else:
            assert done.returncode == 0, done.stderr
            told, errors = done.stdout, done.stderr
            if kills >= KILLS and len(resumed) > 3:
                break
            assert_same(tmp_path / "whole", tmp_path / "out")
            shutil.rmtree(tmp_path / "out")
        resumed |= {line for line in told.splitlines() if line.startswith("resuming from")}
        assert "Traceback" not in errors
    assert kills >= KILLS
    assert len(resumed) > 3  # it was killed at many places
    assert_same(tmp_path / "whole", tmp_path / "out")


def test_resumed_from_any_step_the_rest_has_the_same_bits(lora, ok, tmp_path, rows_file):
    rows = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:22]"}
    lora(dataset=rows)  # the last step of each epoch is half a step
    ok(*RUN, *STEPS, "output_dir=whole")
    for step in (1, 5, 6, 7, 11, 12):  # within an epoch, at its end, at the run's
        name = f"from_{step}"
        ok(*RUN, *STEPS, f"output_dir={name}", f"resume=whole/checkpoints/step_{step}")
        assert_same(tmp_path / "whole", tmp_path / name)


def test_killed_in_the_middle_of_an_accumulation_the_step_is_taken_again(lora, ok, cli, edited, tmp_path):
    lora()
    ok(*RUN, *STEPS, "output_dir=whole")
    mine = edited(
        "if sums and not os.path.exists('killed') and len(os.listdir('out/checkpoints')) >= 3:\n"
        "    open('killed', 'w').close(); os.kill(os.getpid(), 9)"
    )
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    assert cli(*mine, *STEPS).returncode == -signal.SIGKILL
    ok(*mine, *STEPS)
    assert_same(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(lora, ok, cli, edited, tmp_path, name):
    lora(save_every_n_steps=None)
    mine = edited(
        f"if not os.path.exists('told') and step == 2:\n"
        f"    open('told', 'w').close(); os.kill(os.getpid(), __import__('signal').{name})"
    )
    done = cli(*mine, *STEPS)
    assert done.returncode == 128 + signal.Signals[name]
    assert f"{name}: finishing the step, then a checkpoint" in done.stderr
    assert f"stopped after step 3 by {name}; resume=auto goes on" in done.stdout
    assert not (tmp_path / "out" / "model").exists()
    assert "resuming from" in ok(*mine, *STEPS).stdout
    ok(*RUN, *STEPS, "output_dir=whole")
    assert_same(tmp_path / "whole", tmp_path / "out")


def test_the_second_ctrl_c_ends_at_once(lora, cli, edited):
    lora()
    background = "import signal; signal.signal(2, signal.SIG_IGN); stop.__enter__()"  # as a shell starts those
    mine = edited(f"{background}; os.kill(os.getpid(), 2); time.sleep(0.5); os.kill(os.getpid(), 2); time.sleep(100)")
    done = cli(*mine, *STEPS)
    assert done.returncode == 130
    assert "interrupted" in done.stderr


def test_auto_begins_where_there_is_nothing_and_a_restarted_run_goes_on(lora, ok, cli, tmp_path):
    lora(resume=None)
    assert "resuming" not in ok(*RUN, *STEPS, "resume=auto").stdout
    done = cli(*RUN, *STEPS)
    assert done.returncode == 2 and "holds a run already; go on with it (resume=auto)" in done.stderr
    for variable in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        (tmp_path / "out" / "finished.json").unlink()  # as of a run that was killed before it had exported all
        done = cli(*RUN, *STEPS, **{variable: "1"})
        assert done.returncode == 0, done.stderr
        assert "resuming from" in done.stdout and "step_12" in done.stdout


def test_a_finished_run_says_so_before_anything_loads_and_is_not_begun_anew(lora, ok, cli, tmp_path):
    lora()
    line = [*RUN, "max_steps_per_epoch=1"]

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    ok(*line)
    assert "resuming from" in ok(*line, "epochs=2").stdout
    for exported in ("model", "adapter"):
        shutil.rmtree(tmp_path / "out" / exported)
    told = ok(
        *line, "epochs=2", "resume=null", "+resume_from_checkpoint=True"
    ).stdout  # null leaves it to the other key
    assert "step_2" in told and (tmp_path / "out" / "model").is_dir()
    ok(*line, "epochs=2", "save_every_n_steps=5")  # as config.yaml has it from here on
    line = [*line, "save_every_n_steps=5"]
    left = files()
    for restarted in ({}, {"SLURM_RESTART_COUNT": "1"}):
        done = cli(*line, "epochs=2", FORBIDDEN="distill_tune.training.build_models", **restarted)
        assert done.returncode == 0, done.stderr
        assert "this run came to its end with step 2; nothing is left to do" in done.stdout
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    left = {path: time for path, time in left.items() if path.exists()}
    assert "came to its end with step 2" in ok(*line, "epochs=2").stdout
    told = ok("validate", *line[2:], "epochs=2").stdout
    assert "came to its end with step 2" in told and "valid for kd_single_device" in told
    done = cli(*line, "epochs=3")
    assert done.returncode == 2
    assert "has no checkpoint to go on from, and a fresh start would replace " in done.stderr
    assert files() == left


def test_two_runs_do_not_write_to_one_folder(lora, cli, tmp_path):
    lora()
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = cli(*RUN, *STEPS)
        assert done.returncode == 2
        assert "output_dir=out: another run is writing there" in done.stderr.replace(str(tmp_path) + "/", "")
        assert not (tmp_path / "out" / "config.yaml").exists()
    assert cli(*RUN, *STEPS, "max_steps_per_epoch=1").returncode == 0  # it is free again


def test_a_config_that_goes_on_with_another_run_is_refused_with_what_differs(lora, ok, cli, tmp_path, rows_file):
    lora()
    ok(*RUN, *STEPS, "epochs=1")
    for changes, told in [
        (["model.lora_rank=8"], ["model.lora_rank 4 -> 8"]),
        (["optimizer=torch.optim.SGD"], ["optimizer._component_ torch.optim.AdamW -> torch.optim.SGD"]),
        (["batch_size=4"], ["sequences a step (batch_size 2 -> 4) was 4, is 8"]),
        (["dataset.split=train[:32]"], ["rows was 64, is 32", "tokens was"]),
        (["seed=5"], ["seed was 0, is 5"]),
        (["max_steps_per_epoch=8"], ["steps an epoch was 6, is 8"]),
    ]:
        done = cli(*RUN, *STEPS, *changes)
        assert done.returncode == 2, changes
        assert "resuming" not in done.stdout
        assert "this config would go on with another run; set it back, or resume_with_changes=True" in done.stderr
        for text in told:
            assert text in done.stderr
    done = ok(*RUN, *STEPS, "optimizer.lr=5e-4", "kd_ratio=0.9", "+clip_grad_norm=1")
    assert "changed since step_6: " in done.stdout
    for text in ("kd_ratio 0.5 -> 0.9", "optimizer.lr 0.001 -> 0.0005", "clip_grad_norm nothing -> 1", "epochs 1 -> 2"):
        assert text in done.stdout
    rates = [line["lr"] for line in metrics_of(tmp_path / "out")]
    # The cosine of 12 steps at the new rate, from the seventh on: nothing of the old one is left.
    assert rates[6] == pytest.approx(5e-4 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 0.5 * 2 * 5 / 11)).item()))
    done = ok(*RUN, *STEPS, "epochs=3", "batch_size=4", "resume_with_changes=True")
    assert "going on in spite of changes" in done.stdout


def test_a_run_goes_on_with_the_weights_that_it_began_with_wherever_they_lie(
    lora, ok, cli, tmp_path, student_folder, teacher_folder
):
    """A teacher's adapter is among them."""
    student, teacher = tmp_path / "student", tmp_path / "teacher"
    shutil.copytree(student_folder, student)
    shutil.copytree(teacher_folder, teacher)
    lora()
    models = [f"model.path={student}", "~teacher_checkpointer", "teacher_model._component_=distill_tune.models.from_hf"]
    models += [f"~teacher_model.{key}" for key in model_arguments()]
    ok(*RUN, "max_steps_per_epoch=1", *models, f"+teacher_model.path={teacher}")
    (tmp_path / "out" / "finished.json").unlink()  # a run that has come to its end does not go on

    def told(of_teacher: Path, *changes: str) -> tuple[int, str]:
        line = ["kd_single_device", "--config", "config.yaml", "max_steps_per_epoch=1"]
        done = cli("validate", *line, *models, f"+teacher_model.path={of_teacher}", *changes)
        return done.returncode, done.stdout + done.stderr

    moved = tmp_path / "moved"
    shutil.copytree(student, moved)
    status, text = told(teacher, f"model.path={moved}")
    assert status == 0 and f"changed since step_1: model.path {student} -> {moved}" in text
    for folder, key in ((student, "model"), (teacher, "teacher_model")):
        file = folder / "model.safetensors"
        content = file.read_bytes()
        weights = load_file(file)
        weights["model.norm.weight"][-1] += 1  # which neither size nor header tells
        save_file(weights, file, {"format": "pt"})
        status, text = told(teacher)
        assert status == 2 and f"  content of {key} was " in text and "resume_with_changes=True" in text
        assert text.count("content of") == 1
        file.write_bytes(content)
        assert told(teacher)[0] == 0


def test_rows_that_give_what_is_not_finite_are_named_and_left_out(lora, ok, edited, tmp_path):
    lora()
    mine = edited(
        "bad = (0, 7) in batch.places\n"
        "if bad: sums.append(losses.LossSums(*(torch.full((), math.nan) for _ in range(4)))); continue"
    )
    done = ok(*mine, *STEPS, "max_steps_per_epoch=16", "epochs=1")
    lines = metrics_of(tmp_path / "out")
    (bad,) = [line["step"] for line in lines if not line["applied"]]
    assert lines[bad - 1]["loss"] is None
    assert f"step {bad}: loss nan: not applied; its rows: " in done.stdout
    named = next(line for line in done.stdout.splitlines() if "not applied" in line)
    assert "rows.json, row 8" in named
    assert named.count("rows.json, row") == 2  # the micro-batch's, not the whole step's
    states = [load_checkpoint(tmp_path, step) for step in (bad - 1, bad)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] if name.startswith("student."))
    assert len(lines) == 16 and lines[-1]["applied"]


def load_checkpoint(tmp_path: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(tmp_path / "out" / "checkpoints" / f"step_{step}" / "shard-00001-model-00001-of-00001.safetensors")


def test_an_infinite_gradient_is_not_applied_and_too_many_in_a_row_end_the_run(lora, cli, edited, tmp_path):
    lora(save_every_n_steps=None)
    mine = edited(
        "if step >= 3:\n"
        "    for p in student.parameters():\n"
        "        if p.requires_grad: p.grad = torch.full_like(p, math.inf)"
    )
    done = cli(*mine, *STEPS, "+max_bad_steps=4")
    assert done.returncode == 2, done.stderr
    assert (
        "stopped after step 7: 4 steps in a row (max_bad_steps) had a loss or gradient that is not finite"
        in done.stderr
    )
    assert "step 4: gradient norm" in done.stdout and "not applied; its rows: " in done.stdout
    lines = metrics_of(tmp_path / "out")
    assert [line["applied"] for line in lines] == [True] * 3 + [False] * 4
    assert (tmp_path / "out" / "checkpoints" / "step_7" / "SHA256SUMS").is_file()
    weights = [load_checkpoint(tmp_path, step) for step in (6, 7)]
    assert all(torch.isfinite(value).all() for value in weights[1].values())
    # Resumed, the count begins with what its history has.
    assert cli(*mine, *STEPS, "+max_bad_steps=4").returncode == 2


def test_a_spike_is_reported(lora, ok, edited):
    lora()
    mine = edited("if step == 30:\n    sums.append(losses.LossSums(*(torch.tensor(1e4) for _ in range(4))))")
    done = ok(*mine, "epochs=3", "max_steps_per_epoch=null", "save_every_n_steps=null")
    (line,) = [line for line in done.stdout.splitlines() if "is a spike" in line]
    assert line.startswith("step 31: loss ") and "the last 30 steps had" in line


def test_out_of_memory_the_step_is_taken_in_halves_with_the_same_gradient(lora, ok, cli, edited, tmp_path):
    lora()
    settings = [*STEPS, "model.lora_dropout=0"]
    ok(*RUN, *settings, "output_dir=whole")
    # The second micro-batch of each step runs out, and only once the first has its gradient.
    mine = edited("if len(batch.lengths) > 1 and sums: raise torch.OutOfMemoryError('CUDA out of memory. Tried')")
    done = ok(*mine, *settings)
    assert "out of memory with micro-batches of" in done.stdout and "once more, and from now on, with" in done.stdout
    for mine_, theirs in zip(metrics_of(tmp_path / "out"), metrics_of(tmp_path / "whole"), strict=True):
        for key in ("loss", "grad_norm"):
            assert mine_[key] == pytest.approx(theirs[key], rel=1e-5)
        assert mine_["tokens"] == theirs["tokens"]


def test_a_run_whose_memory_ran_out_goes_on_with_the_same_bits(lora, ok, edited, tmp_path):
    lora()
    mine = edited("if sum(batch.lengths) > 40 and len(batch.lengths) > 1: raise torch.OutOfMemoryError('CUDA out of')")
    done = ok(*mine, *STEPS)
    assert "out of memory with micro-batches of" in done.stdout
    middle = sorted((tmp_path / "out" / "checkpoints").glob("step_*"))[0]
    ok(*mine, *STEPS, "output_dir=again", f"resume={middle}")
    whole, again = (metrics_of(tmp_path / name) for name in ("out", "again"))
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]


def test_where_halves_do_not_fit_either_the_cheapest_settings_are_named(lora, cli, edited, tmp_path):
    lora()
    mine = edited("raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 9 GiB')")
    done = cli(*mine, *STEPS)
    assert done.returncode == 2
    assert "the device's memory ran out: CUDA out of memory. Tried to allocate 9 GiB; what costs least: " in done.stderr
    assert (
        "1. batch_size=1 gradient_accumulation_steps=4 (the same steps, a little slower); 2. dtype=bf16" in done.stderr
    )
    assert "3. enable_activation_checkpointing=True" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_best_is_kept_beside_the_last_and_exported(lora, ok, tmp_path, rows_file):
    validation = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:8]"}
    lora(dataset_val=validation, run_val_every_n_steps=2)
    # A rate that is too high: the last is not the best.
    done = ok(*RUN, *STEPS, "keep_last_n=2", "+keep_best=val_loss", "optimizer.lr=0.3", "~lr_scheduler")
    losses = {line["step"]: line["val_loss"] for line in metrics_of(tmp_path / "out") if "val_loss" in line}
    best = min(losses, key=losses.__getitem__)
    kept = {folder.name for folder in (tmp_path / "out" / "checkpoints").iterdir()}
    assert kept == {"step_11", "step_12", f"step_{best}"}
    assert best < 12 and f"exporting the best checkpoint: step {best}, val_loss" in done.stdout
    exported = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    saved = load_checkpoint(tmp_path, best)
    name = "student.layers.0.attn.q_proj.lora_a.weight"
    assert any(torch.equal(saved[name], value) for value in exported.values() if value.shape == saved[name].shape)
    state = json.loads((tmp_path / "out" / "checkpoints" / f"step_{best}" / "state.json").read_text())
    assert state["validation"]["val_loss"] == losses[best]
    assert state["tokens"] == sum(line["tokens"] for line in metrics_of(tmp_path / "out")[:best])
