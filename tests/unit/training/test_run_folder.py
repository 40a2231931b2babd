"""The folder of a run, and what is said of it at the end."""

import io
import shlex
import shutil

import pytest

from distill_tune.cli.main import main
from distill_tune.rollouts.written import FILE
from distill_tune.training import RunFolder


@pytest.mark.parametrize("name", ["out", "it's my run"])
def test_the_line_to_try_a_model_gets_an_answer_of_it(tmp_path, student_folder, monkeypatch, capsys, name):
    run = RunFolder(tmp_path / name)
    shutil.copytree(student_folder, run.model)
    line = run.finish({"step": 3, "loss": 1.0, "ce_loss": 1.0, "kd_loss": 1.0}).splitlines()[-1]
    assert line.startswith("try it: distill-tune chat ")
    monkeypatch.setattr("sys.stdin", io.StringIO("Once\n"))
    main([*shlex.split(line.removeprefix("try it: distill-tune ")), "--max-new-tokens", "4"])
    assert capsys.readouterr().out.strip()


def test_a_last_step_without_a_loss_is_told_without_it(tmp_path):
    """In metrics.jsonl what is not finite is null."""
    told = RunFolder(tmp_path).finish({"step": 3, "loss": None, "ce_loss": 1.5, "kd_loss": None})
    assert told.splitlines()[0] == "done: step 3, ce_loss 1.5000"


def test_an_adapter_is_tried_where_there_is_no_model(tmp_path):
    run = RunFolder(tmp_path)
    run.adapter.mkdir()
    assert run.finish(None).endswith(f"try it: distill-tune chat {run.adapter}")


def test_rollouts_are_told_of_where_there_are_some(tmp_path):
    run = RunFolder(tmp_path)
    assert FILE not in run.finish(None)
    (tmp_path / FILE).touch()
    assert f"{FILE}  some of the student's answers\n" in run.finish(None)


def test_merged_adapters_are_told_of_where_there_are_some(tmp_path):
    run = RunFolder(tmp_path)
    run.model.mkdir()
    assert "model  the student; opens with transformers" in run.finish(None)
    run.adapter.mkdir()
    assert "model  the student, adapters merged; opens with transformers" in run.finish(None)
