"""A cache that a run fills as it goes: `teacher_cache` before the teacher."""

import errno
import json
import os
import re
import signal

import pytest
import yaml
from served import started
from stored_teacher import CACHED, losses_of, of_all
from tiny import ROWS, put_before

from distill_tune import cache
from distill_tune.cache import CacheReader, shard_files
from distill_tune.cache.shard import Shard
from distill_tune.cli.main import main as command_line
from distill_tune.data.dates import day_of_run
from distill_tune.disk import keep_to_oneself
from distill_tune.serve.requests import Requests
from distill_tune.sizes import binary
from distill_tune.teachers import LiveTeacher, Served
from distill_tune.training import Metrics
from distill_tune.training.write_through import WriteThrough

THROUGH = ["teacher_cache=cache", "cache.kind=top_k"]


@pytest.fixture
def asked(monkeypatch):
    """The digests of every batch about which a live teacher is asked."""
    batches, answer = [], LiveTeacher.__call__
    monkeypatch.setattr(
        LiveTeacher, "__call__", lambda self, batch: batches.append(batch.digests) or answer(self, batch)
    )
    return batches


@pytest.mark.parametrize(
    ("recipe", "kind"), [("kd_single_device", "sampled"), ("kd_single_device", "top_k"), ("kd_distributed", "hidden")]
)
def test_the_first_epoch_fills_the_cache_and_all_are_those_from_the_recipes_cache_bit_for_bit(
    run, config, asked, rows_file, tmp_path, capsys, recipe, kind
):
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(
        max_steps_per_epoch=None,
        batch_size=16,
        epochs=3,
        dataset=dataset | {"split": "train[:48]"},
        dataset_val=dataset | {"split": "train[40:]"},
        run_val_every_n_steps=3,
    )
    of_kind = f"cache.kind={kind}"
    run("teacher_cache", of_kind, "output_dir=made")
    run(recipe, "output_dir=wanted", CACHED[0].replace("path: cache", "path: made"))
    asked.clear()
    capsys.readouterr()
    run(recipe, "output_dir=found", "teacher_cache=cache", of_kind)
    told = capsys.readouterr().out
    assert "teacher_cache=cache: lacks 64 of 64 rows; the teacher is asked about each once, which adds some " in told
    assert "teacher_cache=cache: has all 64 rows now; the teacher is let go" in told
    assert losses_of(tmp_path / "found") == losses_of(tmp_path / "wanted")
    digests = [digest for batch in asked for digest in batch]
    assert len(digests) == len(set(digests)) == len(ROWS)  # each once, though eight rows are in both
    assert of_all(tmp_path / "cache") is not None and CacheReader(tmp_path / "cache").manifest.num_rows == len(ROWS)
    asked.clear()
    run(recipe, "output_dir=again", "teacher_cache=cache", "seed=0")  # of the kind that is there
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "wanted")
    assert "teacher_cache=cache: has all 64 rows; the teacher is not loaded" in capsys.readouterr().out
    assert not asked
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    run("teacher_cache", of_kind, "output_dir=cache")  # and nothing is left to do
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == before


def test_killed_before_it_lists_the_last_rows_the_next_run_does(run, config, asked, monkeypatch, tmp_path):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "finish", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run("kd_single_device", "output_dir=one", *THROUGH)
    assert not CacheReader(tmp_path / "cache", unfinished=True).manifest.finished
    asked.clear()
    run("kd_single_device", "output_dir=other", *THROUGH)
    assert not asked
    assert len(CacheReader(tmp_path / "cache").manifest.files) == len(shard_files(tmp_path / "cache"))


def test_rows_that_a_cache_lacks_are_asked_about_beside_those_that_it_has(
    run, config, asked, rows_file, tmp_path, capsys
):
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(dataset=dataset | {"split": "train[:20]"})
    run("teacher_cache", "cache.kind=sampled", "output_dir=cache")
    (first,) = shard_files(tmp_path / "cache")
    written = first.stat().st_mtime_ns
    config(max_steps_per_epoch=None, batch_size=16)
    run("teacher_cache", "cache.kind=sampled", "output_dir=made")
    run("kd_single_device", "output_dir=wanted", CACHED[0].replace("path: cache", "path: made"))
    asked.clear()
    capsys.readouterr()
    run(
        "kd_single_device", "output_dir=found", "teacher_cache=cache", "seed=3"
    )  # the draws are of the cache's own seed
    told = capsys.readouterr().out
    assert f"lacks 44 of 64 rows: {rows_file}, row 21; {rows_file}, row 22; {rows_file}, row 23 and 41 more;" in told
    assert sorted(map(len, asked))[-1] < 16  # no batch was the teacher's alone
    assert sum(map(len, asked)) == 44
    assert first.stat().st_mtime_ns == written
    run("kd_single_device", "output_dir=again", "teacher_cache=cache")
    assert losses_of(tmp_path / "again") == losses_of(tmp_path / "wanted")


def test_an_epoch_that_is_cut_short_asks_for_its_own_rows_alone(run, config, asked, tmp_path, capsys):
    config(max_steps_per_epoch=2, epochs=2, shuffle=False)
    run("kd_single_device", *THROUGH)
    assert "lacks 8 of 8 rows" in capsys.readouterr().out
    assert sum(map(len, asked)) == CacheReader(tmp_path / "cache").manifest.num_rows == 8


def test_rows_are_read_as_of_the_caches_day_and_where_none_is_found_it_says_what_may_be_otherwise(
    run, config, asked, tmp_path, capsys
):
    config(max_steps_per_epoch=2, epochs=1, shuffle=False)
    run("kd_single_device", *THROUGH, "date=2024-02-29", "output_dir=one")
    assert "lacks 8 of 8 rows; the teacher is asked" in capsys.readouterr().out  # nothing was there
    run("kd_single_device", *THROUGH, "output_dir=other")
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["date"] == "2024-02-29"
    command_line(["plan", "--config", "config.yaml", *THROUGH])
    assert day_of_run() == "2024-02-29"
    capsys.readouterr()
    line = ["kd_single_device", *THROUGH, "tokenizer.max_seq_len=24"]
    run(*line, "date=2024-03-01", "output_dir=cut")
    told = capsys.readouterr().out
    assert "lacks 8 of 8 rows (it was made with date=2024-02-29, which a chat template may write): " in told
    assert "are read otherwise now: set max_seq_len, train_on_input, prompts and templates back; else the te" in told


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_without_its_output_layer_a_cache_of_hidden_states_is_given_it_again(
    run, config, asked, tmp_path, capsys, damage
):
    config(max_steps_per_epoch=2, epochs=1)
    run("kd_single_device", "teacher_cache=cache", "cache.kind=hidden", "output_dir=one")
    layer = tmp_path / "cache" / cache.OUTPUT_LAYER
    was = layer.read_bytes()
    layer.unlink() if damage == "missing" else layer.write_bytes(was[:-4] + b"abcd")
    asked.clear()
    capsys.readouterr()
    run("kd_single_device", "teacher_cache=cache", "output_dir=other")
    told = capsys.readouterr().out
    assert "has all 8 rows, but not the output layer, for which alone the teacher is loaded" in told
    assert "the teacher is let go" in told
    assert not any(asked)  # no row
    assert layer.read_bytes() == was
    assert losses_of(tmp_path / "other") == losses_of(tmp_path / "one")


def test_rows_of_a_validation_at_the_end_do_not_keep_the_teacher_until_then(
    run, config, asked, rows_file, tmp_path, capsys, monkeypatch
):
    let_go_with, let_go = [], WriteThrough._let_go
    monkeypatch.setattr(WriteThrough, "_let_go", lambda self: let_go_with.append(len(asked)) or let_go(self))
    at, step = [], Metrics.write
    monkeypatch.setattr(Metrics, "write", lambda self, line: at.append(len(let_go_with)) or step(self, line))
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(
        dataset=dataset | {"split": "train[:32]"},
        dataset_val=dataset | {"split": "train[32:]"},
        batch_size=16,
        epochs=3,
        max_steps_per_epoch=None,
    )
    run("kd_single_device", *THROUGH, "output_dir=one")
    assert at == [0, 1, 1, 1, 1, 1]  # with the first epoch's last step
    assert let_go_with == [4] and sum(map(len, asked)) == len(ROWS)
    run("kd_single_device", *THROUGH, "output_dir=other")
    assert len(asked) == 4
    assert losses_of(tmp_path / "other") == losses_of(tmp_path / "one")


def test_a_run_goes_on_with_the_records_that_it_began_with_alone(run, config, tmp_path, capsys):
    config(max_steps_per_epoch=2)
    run("kd_single_device", *THROUGH, "epochs=1")
    run("teacher_cache", "cache.kind=top_k", "seed=3", "output_dir=of_seed_3")
    for changed in (
        ["teacher_cache=other", "cache.kind=hidden"],
        ["teacher_cache=other", "cache.kind=top_k", "cache.k=4"],
        ["teacher_cache=of_seed_3"],
        [],
    ):
        with pytest.raises(SystemExit):
            run("kd_single_device", *changed, "epochs=2", "resume=auto")
        errors = capsys.readouterr().err
        assert "this config would go on with another run" in errors and "content of teacher_model was" in errors
    (tmp_path / "cache").rename(tmp_path / "moved")
    run("kd_single_device", "teacher_cache=moved", "epochs=2", "resume=auto")


def test_rows_that_come_again_are_counted_once_and_found_before_they_are_on_the_disk(
    run, config, asked, tmp_path, capsys
):
    few = ROWS[:24]
    again = [row for start in range(0, 24, 4) for row in [*few[start : start + 4], *few[start : start + 4]]]
    (tmp_path / "again.json").write_text(json.dumps(again))
    dataset = {"_component_": "distill_tune.data.instruct", "source": "again.json"}
    config(dataset=dataset, shuffle=False, batch_size=4, epochs=1, max_steps_per_epoch=None)
    run("kd_single_device", *THROUGH)
    assert sum(map(len, asked)) == 24
    assert len(shard_files(tmp_path / "cache")) == 1
    reader = CacheReader(tmp_path / "cache")
    size = binary(reader.encoding.bytes_of_position()[0] * reader.manifest.num_positions)
    told = "lacks 24 of 24 rows; the teacher is asked about each once, which adds some"
    assert f"{told} {size}\n" in capsys.readouterr().out


def test_a_server_is_asked_once_about_rows_that_validation_needs_before_the_steps_that_expect_them(
    run, config, start_cli, teacher_folder, rows_file, tmp_path, monkeypatch
):
    pytest.importorskip("uvicorn")
    command, url = started(start_cli, "--teacher", teacher_folder)
    digests, teachers, ask, load = [], [], Requests.ask, Served.load
    monkeypatch.setattr(
        Requests, "ask", lambda self, batch, *given: digests.extend(batch.digests) or ask(self, batch, *given)
    )
    monkeypatch.setattr(
        Served, "load", lambda self, *given, **more: teachers.append(self) or load(self, *given, **more)
    )
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(
        teacher_model={"_component_": "distill_tune.teachers.Served", "url": url, "k": 20, "concurrency": 2},
        dataset=dataset | {"split": "train[:48]"},
        dataset_val=dataset | {"split": "train[32:]"},
        run_val_every_n_steps=2,
        batch_size=4,
        epochs=2,
        max_steps_per_epoch=None,
    )
    run("kd_single_device", *THROUGH, "output_dir=one")
    assert len(digests) == len(set(digests)) == len(ROWS)
    assert not teachers[0]._coming
    run("kd_single_device", *THROUGH, "output_dir=other")
    assert losses_of(tmp_path / "other") == losses_of(tmp_path / "one")
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_a_run_that_would_lose_a_record_alone(run, config, asked, tmp_path, capsys, monkeypatch):
    line, manifest = ["kd_single_device", *THROUGH], tmp_path / "cache" / cache.MANIFEST
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Shard, "write", full)
        run(*line, "output_dir=one")
    told = "teacher_cache=cache: cannot be written: No space left on device; what was closed is there, and resume=auto"
    assert told in capsys.readouterr().err
    run(*line, "output_dir=two")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": {}, "finished": False}))
    asked.clear()
    with monkeypatch.context() as patched:
        patched.setattr("distill_tune.cache.manifest.write_whole", full)
        run(*line, "output_dir=three")
    assert not CacheReader(manifest.parent, unfinished=True).manifest.finished
    could_write, step = [], Metrics.write
    monkeypatch.setattr(
        Metrics, "write", lambda *line: could_write.append(keep_to_oneself(manifest.parent)) or step(*line)
    )
    run(*line, "output_dir=four")
    assert CacheReader(manifest.parent).manifest.finished
    assert could_write[0]  # another may, to what it only reads
    assert not asked


def test_what_is_cut_short_or_came_to_nothing_is_made_anew(run, config, asked, tmp_path, capsys):
    run("kd_single_device", *THROUGH, "output_dir=one")
    (shard,) = shard_files(tmp_path / "cache")
    was = shard.read_bytes()
    shard.write_bytes(was[:100])
    run("kd_single_device", *THROUGH, "output_dir=two")
    told = capsys.readouterr().out
    assert f"{shard.name}: cannot be read: " in told and "; made anew" in told
    assert shard.read_bytes() == was
    for line in (
        ["kd_single_device", "teacher_cache=cache", "output_dir=three"],
        ["teacher_cache", "output_dir=cache"],
    ):
        for path in shard_files(tmp_path / "cache"):
            path.unlink()
        (tmp_path / "cache" / cache.MANIFEST).write_text("{}")
        run(*line, "cache.kind=top_k")
        assert CacheReader(tmp_path / "cache").manifest.finished


def edited(cli, tmp_path, recipe: str, lines: str) -> str:
    """mine.py: a recipe with lines before each step."""
    assert cli("cp", recipe, "mine.py", "--force").returncode == 0
    put_before(tmp_path / "mine.py", "            started = time.perf_counter()\n", f"import os\n{lines}")
    return "mine.py"


KILLED = (
    "if step == {0} and os.environ.get('RANK') in (None, '{1}') and not os.path.exists('killed'):\n"
    "    open('killed', 'w').close(); os.kill(os.getpid(), 9)"
)


def test_killed_it_goes_on_and_nothing_is_lost_or_doubled(config, cli, tmp_path):
    config(max_steps_per_epoch=None, batch_size=8, epochs=2, save_every_n_steps=2)
    line = ["--config", "config.yaml", *THROUGH]
    assert cli("run", "kd_single_device", *line, "output_dir=whole", "teacher_cache=of_whole").returncode == 0
    mine = edited(cli, tmp_path, "kd_single_device", KILLED.format(5, 0))
    assert cli("run", mine, *line).returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in shard_files(tmp_path / "cache")}
    assert len(kept) == 2  # with each checkpoint
    assert not json.loads((tmp_path / "cache" / "manifest.json").read_text())["finished"]
    done = cli("run", mine, *line, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert "teacher_cache=cache: lacks 32 of 64 rows: " in done.stdout
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found, wanted = (of_all(tmp_path / name) for name in ("cache", "of_whole"))  # which has each row once
    assert len(found) == len(wanted) and (found.log_probs == wanted.log_probs).all()


def test_two_ranks_fill_one_cache_together_also_where_one_was_killed(config, cli, rows_file, tmp_path):
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    config(  # of eight rows each comes again before all have been seen
        dataset=[dataset | {"split": "train[:40]", "weight": 1.0}, dataset | {"split": "train[40:48]", "weight": 1.0}],
        max_steps_per_epoch=None,
        batch_size=4,
        epochs=2,
        save_every_n_steps=2,
    )
    two = ["run", "--nproc_per_node", "2"]
    line = ["--config", "config.yaml", *THROUGH]
    mine = edited(cli, tmp_path, "kd_distributed", KILLED.format(3, 1))
    done = cli(*two, mine, *line)
    assert done.returncode != 0, done.stdout
    assert os.path.exists(tmp_path / "killed"), done.stderr[-1500:]
    assert (tmp_path / "killed").exists() and shard_files(tmp_path / "cache")
    done = cli(*two, mine, *line, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert "the teacher is let go" in done.stdout
    found = of_all(tmp_path / "cache")  # each row once
    assert len(found) == CacheReader(tmp_path / "cache").manifest.num_positions
    done = cli(*two, "kd_distributed", "--config", "config.yaml", "output_dir=again", "teacher_cache=cache")
    assert done.returncode == 0, done.stderr
    assert "the teacher is not loaded" in done.stdout
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "again")


def test_a_cache_of_another_teacher_or_of_other_settings_is_refused(run, config, student_folder, tmp_path, capsys):
    run("kd_single_device", *THROUGH)
    for changed, told in (
        ([f"teacher_model.path={student_folder}"], "content of teacher_model was "),
        (["cache.k=4"], "k was 50, is 4"),
        (["cache.kind=hidden"], "kind was top_k, is hidden"),
    ):
        with pytest.raises(SystemExit):
            run("kd_single_device", *THROUGH, *changed, "output_dir=other")
        errors = capsys.readouterr().err
        assert "teacher_cache=cache: holds another cache; set it back, or name another folder" in errors
        assert told in errors
    with pytest.raises(SystemExit):
        run("teacher_cache", "teacher_cache=cache", "cache.kind=top_k", "output_dir=other")
    assert (
        "teacher_cache: the recipe teacher_cache does not read it; it writes to output_dir" in capsys.readouterr().err
    )


def test_plan_counts_the_teacher_once_and_not_at_all_where_nothing_is_missing(run, config, tmp_path, capsys):
    config(epochs=2, batch_size=16, max_steps_per_epoch=None)

    def work(*overrides: str) -> tuple[float, str]:
        command_line(["plan", "--config", "config.yaml", "--gpu", "24GB", *overrides])
        told = capsys.readouterr().out
        return float(re.search(r"work: ([\d.e-]+) TFLOP", told)[1]), told

    (live, _), (alone, _) = work(), work("kd_ratio=0")
    missing, told = work(*THROUGH)
    assert "teacher_cache=cache: lacks 64 of 64 rows; the teacher is asked about each once, which adds some" in told
    assert missing - alone == pytest.approx((live - alone) / 2, rel=0.05)
    assert not (tmp_path / "cache").exists()
    run("teacher_cache", "cache.kind=top_k", "output_dir=cache")
    capsys.readouterr()
    there, told = work("teacher_cache=cache")
    assert there == alone
    assert "  teacher  " not in told
    (tmp_path / "teacher" / "model.safetensors").unlink()
    assert work("teacher_cache=cache") == (there, told)
    with pytest.raises(SystemExit):
        work(*THROUGH, "cache.k=4")
    assert "k was 50, is 4" in capsys.readouterr().err
