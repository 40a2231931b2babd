"""Folders of runs that go on, have stopped, have just begun, or were cut short in the middle of a line."""

import subprocess
import sys

import pytest
from made_runs import line, write_run

from distill_tune.disk import keep_to_oneself
from distill_tune.errors import UserError
from distill_tune.reports.run_files import RunFiles, find_runs, opened


def test_a_finished_run_is_read_whole(tmp_path):
    run = RunFiles.open(write_run(tmp_path / "a", 3, facts={"total_steps": 3}))
    assert (run.name, run.state, run.total_steps, len(run.steps)) == ("a", "finished", 3, 3)
    assert run.config["optimizer"]["lr"] == 2e-3
    assert run.command == "distill-tune run kd_single_device --config tiny"
    assert run.column("loss", "total_tokens")[0] == [2000, 4000, 6000]


def test_a_run_is_running_as_long_as_its_process_has_the_folder(tmp_path):
    folder = write_run(tmp_path / "a", 1, finished=False)
    code = "import pathlib, sys; from distill_tune.disk import keep_to_oneself; "
    code += "keep_to_oneself(pathlib.Path(sys.argv[1])); print('has it', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline()
        assert RunFiles.open(folder).state == "running"
        process.kill()
    assert RunFiles.open(folder).state == "stopped"


def test_what_is_missing_or_half_written_is_left_out(tmp_path):
    run = write_run(tmp_path / "a", [line(1), line(2, loss=None), {"no": "step"}], facts={}, finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    (run / "run.json").write_text('{"total_st')
    (run / "config.yaml").write_text("# distill-tune run x\na: [1")
    files = RunFiles.open(run)
    assert [step["step"] for step in files.steps] == [1, 2]
    assert files.column("loss")[0] == [1]
    assert (files.facts, files.config, files.total_steps, files.evaluation, files.rollouts) == ({}, {}, None, {}, [])
    assert list(files.samples()) == []


def test_a_run_that_has_not_taken_a_step_is_one(tmp_path):
    (tmp_path / "config.yaml").write_text("kd_ratio: 0.5\n")
    assert keep_to_oneself(tmp_path)
    assert RunFiles.open(tmp_path).steps == []


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing: no run has written there"):
        RunFiles.open(tmp_path / "nothing")


def test_runs_are_found_below_a_folder_and_caches_are_none(tmp_path):
    for name in ("b/two", "a", "b/one"):
        write_run(tmp_path / name, 1)
    (tmp_path / "cache").mkdir()
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / "cache" / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == ["a", "b/one", "b/two"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_checkpoints_of_a_run_whose_own_files_are_gone_are_no_runs(tmp_path):
    step = tmp_path / "lost" / "checkpoints" / "step_3"
    step.mkdir(parents=True)
    for name in ("metrics.jsonl", "state.json"):
        (step / name).write_text("{}\n")
    assert find_runs(tmp_path) == []
    with pytest.raises(UserError, match="step_3: no run has written there"):
        RunFiles.open(step)


def test_runs_have_names_that_tell_them_apart(tmp_path):
    folders = [write_run(tmp_path / name / "run", 1) for name in ("a", "b")]
    assert [run.name for run in opened([*folders, folders[0]])] == ["a/run", "b/run"]


def test_reading_imports_no_torch():
    code = "import sys, distill_tune.reports.run_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
