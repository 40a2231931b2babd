"""What of a config with rollouts is refused before a model loads."""

import json
import types

import pytest
import torch
from tiny import write_model

from distill_tune.errors import UserError
from distill_tune.rollouts import checks, step_answers
from distill_tune.teachers import LiveTeacher
from distill_tune.training.schedules import Linear, Schedules

INSTRUCT = "distill_tune.data.instruct"


@pytest.mark.parametrize(
    ("settings", "changes", "told"),
    [
        (
            {},
            {"kd_ratio": 0.5},
            "rollouts: kd_ratio is 0.5 at step 0, where the student writes every answer: .*kd_ratio=1$",
        ),
        ({"lmbda": 0.5}, {"kd_ratio": 0.0}, "rollouts: kd_ratio is 0 at step 0, where the student writes answers: "),
        (
            {"lmbda": {"_component_": "distill_tune.training.Linear", "start": 0.0, "change": 0.5}},
            {},
            "rollouts.lmbda: its schedule gives 1.5 at step 3; it must stay from 0 to 1",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_by_their_key(rows_of, settings, changes, told):
    with pytest.raises(UserError, match=r"^" + told):
        rows_of(settings, **changes)


def test_a_teacher_that_is_to_tell_of_the_students_tokens_needs_rollouts(rows_of, monkeypatch):
    monkeypatch.setattr(LiveTeacher, "tokens_of_student", 3)
    rows_of()
    with pytest.raises(UserError, match=r"^teacher_model.k_of_student=3: is for rows that the student writes"):
        rows_of(rollouts=None)


@pytest.mark.parametrize(("lmbda", "kd_ratio"), [(0.0, 0.0), (0.0, 0.5), (0.5, 0.1)])
def test_where_some_answers_are_the_datas_there_may_be_cross_entropy(rows_of, lmbda, kd_ratio):
    rows_of({"lmbda": lmbda}, kd_ratio=kd_ratio)


def test_the_last_step_of_a_long_run_is_looked_at_too():
    falling = Linear(start=1.0, end=0.0, over=2001)
    shares, ratios = (Schedules(10, 2002, values) for values in ({"rollouts.lmbda": 0.5}, {"kd_ratio": falling}))
    with pytest.raises(UserError, match="kd_ratio is 0 at step 2001"):
        checks._require_fitting_loss(shares, types.SimpleNamespace(schedules=ratios))


def test_a_row_that_is_learned_from_its_first_token_on_is_named(rows_of, tmp_path):
    """And the way out that is told is one."""
    (tmp_path / "text.json").write_text(json.dumps([{"text": "What is 1 plus 2?"}] * 8))
    text = {"_component_": "distill_tune.data.text", "source": str(tmp_path / "text.json")}
    with pytest.raises(
        UserError, match=r"text.json, row 1 has no prompt before its answer: all of it is learned"
    ) as told:
        rows_of(dataset=text)
    assert str(told.value).endswith("_component_=distill_tune.data.instruct with dataset.column_map={prompt: text}")
    rows_of(dataset=text | {"_component_": INSTRUCT, "column_map": {"prompt": "text"}})


def test_an_answer_is_no_longer_than_student_and_teacher_read(rows_of):
    rows = rows_of({"sampling": {"max_new_tokens": 128}}, teacher_prompt_template="{input} Know this: {output}")
    assert rows._of.longest.student < rows._of.longest.teacher == 128


def test_a_prompt_that_leaves_no_room_is_named(rows_of, tmp_path):
    """Of 128 tokens, as many as the models read; longer ones are left out before."""
    rows = [{"instruction": "7" * length} for length in range(90, 128)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json")}
    with pytest.raises(
        UserError, match=r"rows.json, row \d+ has a prompt that leaves no room for an answer: the models"
    ):
        rows_of(dataset=dataset)


def test_a_batch_of_tokens_that_holds_no_row_with_its_answer_is_told_of(rows_of):
    changes = {"batch_size": None, "max_tokens_per_batch": 60}
    with pytest.raises(
        UserError, match=r"^max_tokens_per_batch=60: a prompt with an answer of rollouts.sampling.max_new"
    ):
        rows_of({"sampling": {"max_new_tokens": 50}}, **changes)


def test_of_several_teachers_together_none_writes(rows_of, teacher_folder):
    teacher = {"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)}
    changes = {"teacher_model": [teacher, teacher], "teacher_checkpointer": None}
    with pytest.raises(UserError, match=r"^rollouts.seq_kd=True: SeveralTeachers cannot write answers"):
        rows_of({"seq_kd": True}, **changes)
    rows_of({}, **changes)


def test_a_teacher_that_ends_answers_otherwise_is_told_of(rows_of, tokenizer_file, tmp_path, capsys):
    other = write_model(tmp_path / "other", tokenizer_file, seed=3)
    config = json.loads((other / "config.json").read_text()) | {"eos_token_id": [2, 7]}
    (other / "config.json").write_text(json.dumps(config))
    teacher = {"_component_": "distill_tune.models.from_hf", "path": str(other)}
    rows_of(teacher_model=teacher, teacher_checkpointer=None)
    assert "should answers grow long, add " in capsys.readouterr().out


@pytest.mark.parametrize("longer", ["model", "teacher_model"])
def test_answers_have_no_tokens_that_one_of_the_models_lacks(rows_of, tokenizer_file, tmp_path, monkeypatch, longer):
    folder = write_model(tmp_path / "longer", tokenizer_file, seed=3, vocab_size=384)
    component = {"_component_": "distill_tune.models.from_hf", "path": str(folder)}
    of_checkpoint = {"checkpointer" if longer == "model" else "teacher_checkpointer": None}
    changes = {longer: component} | of_checkpoint
    known = []
    monkeypatch.setattr(step_answers, "generator_of", lambda *models, **more: known.append(more["known_tokens"]))
    rows = rows_of({"seq_kd": True}, **changes)
    rows.begin(rows._of.built.student, torch.device("cpu"), 1, tmp_path)
    assert known == [320, 320]
    server = {"server": {"_component_": "distill_tune.generation.Server", "url": "http://localhost:1"}}
    if longer == "model":
        with pytest.raises(UserError, match=r"^rollouts.server: it may answer with each of the student's 384 tokens"):
            rows_of(server, **changes)
    else:
        rows_of(server, **changes)


def test_a_server_which_would_answer_with_weights_that_are_not_rounded_is_refused(rows_of):
    server = {"server": {"_component_": "distill_tune.generation.Server", "url": "http://localhost:1"}}
    quantizer = {"_component_": "distill_tune.qat.Q4_0"}
    rows_of(quantizer=quantizer)
    with pytest.raises(UserError, match=r"^rollouts.server: it would answer with the student's weights as they are"):
        rows_of(server, quantizer=quantizer)
