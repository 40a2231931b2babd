"""The folder of a run, and what is said of it at the end."""

import shlex
import shutil

import pytest

from distill_tune.rollouts.written import FILE
from distill_tune.training import RunFolder


@pytest.mark.parametrize("name", ["out", "it's my run"])
@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"])
def test_the_line_to_try_a_model_answers_by_its_chat_template_where_it_has_one(
    tmp_path, student_folder, capsys, name, template
):
    run = RunFolder(tmp_path / name)
    shutil.copytree(student_folder, run.model)
    if template:
        (run.model / "chat_template.jinja").write_text(template)
    line = run.finish({"step": 3, "loss": 1.0, "ce_loss": 1.0, "kd_loss": 1.0}).splitlines()[-1]
    assert line.startswith("try it: python -c ")
    python, option, code = shlex.split(line.removeprefix("try it: "))
    assert (python, option) == ("python", "-c")
    exec(code, {"__name__": "__main__"})
    answered = capsys.readouterr().out
    assert "generated_text" in answered and ("'role': 'assistant'" if template else "Once") in answered


def test_a_last_step_without_a_loss_is_told_without_it(tmp_path):
    """In metrics.jsonl what is not finite is null."""
    told = RunFolder(tmp_path).finish({"step": 3, "loss": None, "ce_loss": 1.5, "kd_loss": None})
    assert told.splitlines()[0] == "done: step 3, ce_loss 1.5000"


def test_what_the_line_to_try_an_adapter_needs_is_said(tmp_path):
    run = RunFolder(tmp_path)
    run.adapter.mkdir()
    assert "try it (needs peft: pip install peft): python -c " in run.finish(None)


def test_rollouts_are_told_of_where_there_are_some(tmp_path):
    run = RunFolder(tmp_path)
    assert FILE not in run.finish(None)
    (tmp_path / FILE).touch()
    assert f"{FILE}  some of the student's answers, with the teacher's marks" in run.finish(None)


def test_merged_adapters_are_told_of_where_there_are_some(tmp_path):
    run = RunFolder(tmp_path)
    run.model.mkdir()
    assert "model  the student; opens with transformers" in run.finish(None)
    run.adapter.mkdir()
    assert "model  the student, adapters merged; opens with transformers" in run.finish(None)
