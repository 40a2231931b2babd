"""A teacher's word stored by recipes/teacher_cache.py, and trained from without the teacher."""

import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file
from stored_teacher import ALONE, CACHED, losses_of, of_all
from tiny import ROWS, put_before

from distill_tune import training
from distill_tune.cache import OUTPUT_LAYER, shard_files
from distill_tune.cache.shard import Shard
from distill_tune.cli.main import main as command_line
from distill_tune.errors import UserError


@pytest.mark.parametrize("recipe", ["kd_single_device", "kd_distributed"])
def test_hidden_states_teach_as_the_teacher_does_and_its_folder_is_not_needed(run, config, tmp_path, recipe):
    config(
        temperature=2.0,
        kd_loss={"_component_": "distill_tune.losses.JensenShannon", "beta": 0.3},
        teacher_prompt_template="Think first. {input}",
        epochs=2,
    )
    run("teacher_cache", "cache.kind=hidden", "output_dir=cache")
    run(recipe, "output_dir=live")
    (tmp_path / "teacher").rename(tmp_path / "gone")
    run(recipe, "output_dir=cached", *CACHED)
    live, cached = losses_of(tmp_path / "live"), losses_of(tmp_path / "cached")
    assert len(live) == 8
    for mine, its in zip(cached, live, strict=True):
        assert mine["kd_loss"] == pytest.approx(its["kd_loss"], rel=5e-3)  # bfloat16
        assert mine["ce_loss"] == pytest.approx(its["ce_loss"], rel=1e-3)


def test_top_tokens_teach_as_the_live_teachers_do_and_resume_bit_for_bit(run, config, tmp_path):
    config(
        kd_loss={
            "_component_": "distill_tune.losses.TopK",
            "k": 6,
            "divergence": {"_component_": "distill_tune.losses.ReverseKL"},
        },
        epochs=2,
        save_every_n_steps=1,
    )
    run("teacher_cache", "cache.kind=top_k", "cache.k=6", "output_dir=cache")
    run("kd_single_device", "output_dir=live")
    run("kd_single_device", "output_dir=whole", *CACHED)
    for mine, its in zip(losses_of(tmp_path / "whole"), losses_of(tmp_path / "live"), strict=True):
        assert mine["kd_loss"] == pytest.approx(its["kd_loss"], rel=2e-3)
    (tmp_path / "cache").rename(tmp_path / "elsewhere")
    moved = CACHED[0].replace("path: cache", "path: elsewhere")
    run("kd_single_device", "output_dir=again", moved, "resume=whole/checkpoints/step_5")
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "whole")


def test_a_row_that_follows_another_teacher_than_before_is_asked_about_again(
    run, config, rows_file, student_folder, tmp_path
):
    rows = json.loads(rows_file.read_text())[:8]
    for name, of_each in (("first", "aaaaaaaa"), ("second", "abbbabab")):
        named = [row | {"teacher_id": teacher} for row, teacher in zip(rows, of_each, strict=True)]
        (tmp_path / f"{name}.json").write_text(json.dumps(named))
    from_hf = "distill_tune.models.from_hf"
    config(
        teacher_model=[
            {"_component_": from_hf, "path": "teacher", "name": "a"},
            {"_component_": from_hf, "path": str(student_folder), "name": "b"},
        ],
        teacher_combination="by_row",
        kd_loss={"_component_": "distill_tune.losses.TopK", "k": 6},
        max_steps_per_epoch=1,
        epochs=1,
    )
    for name in ("first", "second"):
        run("teacher_cache", "cache.kind=top_k", "cache.k=6", "output_dir=cache", f"dataset.source={name}.json")
    run("kd_single_device", "output_dir=live", "dataset.source=second.json")
    run("kd_single_device", "output_dir=cached", "dataset.source=second.json", *CACHED)
    (live,), (cached,) = losses_of(tmp_path / "live"), losses_of(tmp_path / "cached")
    assert cached["kd_loss"] == pytest.approx(live["kd_loss"], rel=2e-3)


def test_draws_teach_whatever_the_order_the_packing_and_the_weights(run, config, rows_file, tmp_path, capsys):
    run("teacher_cache", "cache.kind=sampled", "cache.draws=400", "output_dir=cache")
    assert f"train from it: '{CACHED[0]}'" in capsys.readouterr().out
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(dataset=[dataset | {"weight": 1.0, "packed": True}, dataset | {"weight": 2.0, "split": "train[:9]"}], seed=3)
    run("kd_single_device", "output_dir=live")
    run("kd_single_device", "output_dir=cached", *CACHED)
    live, cached = losses_of(tmp_path / "live"), losses_of(tmp_path / "cached")
    # Of 400 draws a token, over some hundred tokens.
    assert cached[0]["kd_loss"] == pytest.approx(live[0]["kd_loss"], rel=0.02)
    assert cached[-1]["loss"] == pytest.approx(live[-1]["loss"], rel=0.05)


def test_the_same_cache_comes_of_other_batches_and_grows_with_the_rows(run, config, rows_file, tmp_path, capsys):
    run("teacher_cache", "cache.kind=sampled", "output_dir=cache")
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(dataset=dataset | {"split": "train[:20]"}, batch_size=1)
    run("teacher_cache", "cache.kind=sampled", "output_dir=other")
    rows = json.loads(rows_file.read_text())
    (tmp_path / "turned.json").write_text(json.dumps(rows[::-1]))
    config(dataset=dataset | {"source": "turned.json"}, dataset_val=dataset, batch_size=2)
    run("teacher_cache", "cache.kind=sampled", "output_dir=other")
    one, other = of_all(tmp_path / "cache"), of_all(tmp_path / "other")
    assert one.ids.shape[0] == other.ids.shape[0]
    assert (one.entropy - other.entropy).abs().max() < 3e-4

    def dense(record):
        return torch.zeros(len(record.ids), record.vocab_size).scatter_add(1, record.ids.long(), record.weights)

    assert (dense(one) == dense(other)).all(-1).float().mean() > 0.99  # but where a sum was rounded otherwise
    capsys.readouterr()
    before = {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()}
    run("teacher_cache", "cache.kind=sampled", "output_dir=other")
    assert f"this cache has all {2 * len(ROWS)} rows; nothing is left to do" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (tmp_path / "other").iterdir()} == before


@pytest.fixture
def slow(cli, tmp_path):
    """mine.py: the recipe with small shards, and lines before each micro-batch."""

    def edit(lines: str) -> list[str]:
        assert cli("cp", "teacher_cache", "mine.py", "--force").returncode == 0
        script = tmp_path / "mine.py"
        script.write_text(script.read_text().replace("CacheWriter(folder)", "CacheWriter(folder, 4000)"))
        put_before(script, "            started = time.perf_counter()\n", f"import os\n{lines}")
        return ["run", "mine.py", "--config", "config.yaml", "cache.kind=top_k", "output_dir=cache"]

    return edit


def test_killed_and_stopped_it_goes_on_and_every_byte_is_as_if_it_had_not_been(config, cli, slow, tmp_path):
    assert cli(*slow("pass"), "output_dir=whole", **ALONE).returncode == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir() if path.name != ".lock"}
    assert len(shard_files(tmp_path / "whole")) > 4
    killed = "if step == {0}:\n    os.kill(os.getpid(), __import__('signal').{1})"
    assert cli(*slow(killed.format(7, "SIGKILL")), **ALONE).returncode == -signal.SIGKILL
    left = shard_files(tmp_path / "cache")
    assert 0 < len(left) < len(shard_files(tmp_path / "whole"))
    written = {path: path.stat().st_mtime_ns for path in left}
    done = cli(*slow(killed.format(12, "SIGKILL")), **ALONE)
    assert done.returncode == -signal.SIGKILL
    done = cli(*slow("pass"), **ALONE)
    assert done.returncode == 0, done.stderr
    assert "step 1/" not in done.stdout
    assert {path: path.stat().st_mtime_ns for path in left} == written
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir() if p.name != ".lock"} == whole

    shutil.rmtree(tmp_path / "cache")
    done = cli(*slow(killed.format(6, "SIGTERM")), **ALONE)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "SIGTERM: finishing the step, what is done is written" in done.stderr
    assert "stopped after step 7 by SIGTERM; the same command goes on" in done.stdout
    done = cli(*slow("pass"), **ALONE)
    assert "step 8/" in done.stdout
    assert torch.equal(of_all(tmp_path / "cache").log_probs, of_all(tmp_path / "whole").log_probs)


def test_what_a_teacher_said_before_it_is_lost_is_kept(run, monkeypatch, tmp_path, capsys):
    asked = training.recorded

    def lost_in_the_end(*arguments):
        if len(calls) == 3:
            raise UserError("teacher_model: no server answers any more")
        calls.append(arguments)
        return asked(*arguments)

    calls = []
    monkeypatch.setattr(training, "recorded", lost_in_the_end)
    with pytest.raises(SystemExit):
        run("teacher_cache", "cache.kind=top_k", "output_dir=cache")
    assert "no server answers any more" in capsys.readouterr().err
    (shard,) = shard_files(tmp_path / "cache")
    assert len(Shard.open(shard)) == sum(len(batch.digests) for _, _, batch, _ in calls)


def test_two_processes_make_the_cache_of_one_and_train_from_it_as_one(config, cli, run, tmp_path):
    config(dataset_val="${dataset}")
    run("teacher_cache", "cache.kind=top_k", "output_dir=one")
    done = cli("run", "--nproc_per_node", "2", *_command("teacher_cache", "cache.kind=top_k", "output_dir=cache"))
    assert done.returncode == 0, done.stderr
    assert len(shard_files(tmp_path / "cache")) == 2
    one, both = of_all(tmp_path / "one"), of_all(tmp_path / "cache")
    assert (one.log_probs - both.log_probs).abs().max() < 5e-3
    done = cli("run", "--nproc_per_node", "2", *_command("kd_distributed", "batch_size=2", *CACHED))
    assert done.returncode == 0, done.stderr
    run("kd_single_device", *CACHED, "output_dir=alone")
    for mine, its in zip(losses_of(tmp_path / "out"), losses_of(tmp_path / "alone"), strict=True):
        assert mine["kd_loss"] == pytest.approx(its["kd_loss"], rel=1e-4)


def _command(recipe: str, *overrides: str) -> list[str]:
    return [recipe, "--config", "config.yaml", *overrides]


TWO = "teacher_model=[{0},{0}]".format("{_component_: distill_tune.models.from_hf, path: teacher}")
SCHEDULE = "temperature={_component_: distill_tune.training.Linear, start: 2.0, end: 1.0}"
REFUSED = [
    (["cache.kind=hidden", "teacher_model=distill_tune.teachers.EMA"], "EMA follows the student"),
    (["cache.kind=sampled", "kd_ratio=0"], "there is nothing to store"),
    (["cache.kind=sampled", "cache.draws=5000"], "cache.draws=5000: must be from 1 to 4095"),
    (["cache.kind=top_k", "cache.k=320"], "cache.k=320: must be below the 320 tokens of the vocabulary"),
    (["cache.kind=top_k", SCHEDULE], "a top_k record serves one temperature; take cache.kind=hidden"),
    (["cache.kind=top_k", "kd_loss={_component_: distill_tune.losses.TopK, k: 60}"], "cannot serve TopK of 60"),
    (["cache.kind=top_k", "augmentations=[{_component_: distill_tune.data.DropTokens}]"], "prompts that no cache has"),
    (["cache.kind=hidden", TWO], "of several teachers (mixture) take sampled or top_k, or one each"),
    (["cache.kind=top_k", TWO, "teacher_combination=sum"], "make a cache of each one alone"),
]


@pytest.mark.parametrize(("overrides", "told"), REFUSED)
def test_what_cannot_be_stored_is_told_before_the_teacher_loads(run, capsys, tmp_path, overrides, told):
    with pytest.raises(SystemExit):
        run("teacher_cache", *overrides, "output_dir=cache")
    assert told in capsys.readouterr().err
    assert not shard_files(tmp_path / "cache")
    assert "RANK" not in os.environ


@pytest.mark.parametrize("kind", ["sampled", "top_k", "hidden"])
def test_a_cache_is_shown_and_verified_against_its_teacher_and_not_against_another(run, config, tmp_path, capsys, kind):
    run("teacher_cache", f"cache.kind={kind}", "output_dir=cache")
    capsys.readouterr()
    command_line(["cache", "ls", "cache"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"cache: {kind}, vocab_size 320")
    assert f"{len(ROWS)} rows, " in shown
    assert "\n  of distill_tune.models.from_hf, content " in shown
    assert ", no chat template, " in shown
    command_line(["cache", "verify", "cache", "--config", "config.yaml", "--rows", "40"])
    told = capsys.readouterr().out
    assert "read whole, 1 shard and what is beside: as they were written" in told
    assert "differ by 0 at most, 0 on average; 100.0% of positions are the same" in told
    assert "another teacher" not in told
    with pytest.raises(SystemExit):
        command_line(["cache", "verify", "cache", "teacher_model.path=${model.path}", "--config", "config.yaml"])
    told = capsys.readouterr()
    assert "another teacher than it was made with: content of teacher_model was " in told.out
    assert "what is stored is not what this teacher says" in told.err
    with pytest.raises(SystemExit):
        command_line(["compare", "teacher", "dataset_val=${dataset}", *CACHED, "--config", "config.yaml"])
    assert "Cached knows no rows but its own; name the teacher itself" in capsys.readouterr().err
    (shard,) = shard_files(tmp_path / "cache")
    content = bytearray(shard.read_bytes())
    content[-40] ^= 1
    shard.write_bytes(content)
    with pytest.raises(SystemExit):
        command_line(["cache", "verify", "cache"])
    assert "is damaged: its checksum differs; copy it again, or delete it" in capsys.readouterr().err
    shard.unlink()
    run("teacher_cache", f"cache.kind={kind}", "output_dir=cache")
    command_line(["cache", "verify", "cache"])  # made anew
    if kind == "hidden":
        (tmp_path / "cache" / OUTPUT_LAYER).unlink()
        with pytest.raises(SystemExit):
            command_line(["cache", "verify", "cache"])
        run("teacher_cache", "cache.kind=hidden", "output_dir=cache")
        command_line(["cache", "verify", "cache"])


def test_draws_are_not_those_of_another_teacher_that_is_as_sure(run, config, tmp_path, capsys):
    run("teacher_cache", "cache.kind=sampled", "output_dir=cache")
    path = tmp_path / "teacher" / "model.safetensors"
    weights = load_file(path)
    norm = weights["model.norm.weight"]
    norm[torch.rand(len(norm), generator=torch.Generator().manual_seed(5)) < 0.5] *= -1  # other tokens, as likely
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(SystemExit):
        command_line(["cache", "verify", "cache", "--config", "config.yaml"])
    told = capsys.readouterr()
    assert "what is stored is not what this teacher says" in told.err
    assert "what was drawn, by its distribution now: " in told.out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "say what to do, and with which cache"),
        (["ls", "nowhere"], "nowhere: no cache of a teacher"),
        (["verify", "nowhere"], "nowhere: no cache of a teacher"),
        (["verify", "nowhere", "--rows", "0"], "--rows 0: must be a whole number of at least 1"),
    ],
)
def test_what_cannot_be_shown_is_told(arguments, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command_line(["cache", *arguments])
    assert told in capsys.readouterr().err
