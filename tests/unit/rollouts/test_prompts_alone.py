"""Rows without an answer: prompts for the student, or the teacher, to answer."""

import json

import pytest
from tiny import ROWS

from distill_tune.errors import UserError

INSTRUCT, CHAT = "distill_tune.data.instruct", "distill_tune.data.chat"
QUESTION = ROWS[9]["instruction"]
ASKED = {
    INSTRUCT: [{"instruction": QUESTION}, {"prompt": QUESTION, "output": ""}, {"question": QUESTION, "answer": None}],
    CHAT: [
        {"messages": [{"role": "user", "content": QUESTION}]},
        {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ""}]},
        {"prompt": QUESTION, "completion": ""},
    ],
}
WHOLE = {
    INSTRUCT: ROWS[9],
    CHAT: {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ROWS[9]["output"]}]},
}


@pytest.fixture
def dataset(tmp_path):
    def write(component, rows):
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return {"_component_": component, "source": str(tmp_path / "rows.json")}

    return write


@pytest.mark.parametrize("component", [INSTRUCT, CHAT])
def test_they_are_the_prompts_of_rows_with_answers(rows_of, dataset, component, capsys):
    rows = rows_of(dataset=dataset(component, [WHOLE[component], *ASKED[component]]))
    (of_data,) = rows._steps.plan.datasets
    whole, *asked = (of_data[number] for number in range(len(of_data)))
    prompt = whole.tokens[whole.labels == -100].tolist()
    assert [row.tokens.tolist() for row in asked] == [prompt] * 3
    assert of_data.supervised.tolist()[1:] == [0] * 3
    assert of_data.last_learned.tolist() == [2]
    assert "; 3 prompts without an answer\n" in capsys.readouterr().out


def test_they_are_answered_behind_both_prompts(begun, dataset):
    of_data = dataset(INSTRUCT, ASKED[INSTRUCT])
    rows = begun({"sampling": {"max_new_tokens": 20}}, dataset=of_data, batch_size=3, teacher_system_prompt="You add.")
    (batch,) = rows.of_step(1, print).batches
    assert len(batch.supervised_positions) == len(batch.for_teacher.supervised_positions) > 3
    assert sum(batch.for_teacher.lengths) > sum(batch.lengths)


@pytest.mark.parametrize(("settings", "needs"), [({"lmbda": 0.5}, True), ({"lmbda": 0.5, "seq_kd": True}, False)])
def test_where_a_row_has_to_have_an_answer_it_is_named(rows_of, dataset, settings, needs):
    of_data = dataset(INSTRUCT, [*ROWS[:7], *ASKED[INSTRUCT]])
    if not needs:
        rows_of(settings, dataset=of_data)
        return
    told = r"3 bad rows(?s:.*)rows.json, row 8: no(?s:.*)with rollouts.lmbda below 1 some rows are learned as they are"
    with pytest.raises(UserError, match=told):
        rows_of(settings, dataset=of_data)


def test_where_a_row_has_to_have_an_answer_others_are_counted_and_left_out(rows_of, dataset, capsys):
    of_data = dataset(INSTRUCT, [*ROWS[:8], *ASKED[INSTRUCT]])
    rows = rows_of({"lmbda": 0.5}, dataset=of_data, on_bad_row="skip")
    assert len(rows._steps.plan.datasets[0]) == 8
    assert "of them supervised; 3 bad rows left out" in capsys.readouterr().out


def test_answers_that_are_not_learned_are_not_counted(rows_of, dataset, capsys):
    rows_of({"lmbda": 1.0}, dataset=dataset(INSTRUCT, ROWS[:8]))
    told = capsys.readouterr().out
    assert "prompts whose answers are written anew" in told and "supervised" not in told


def test_without_rollouts_and_for_validation_a_row_has_to_have_an_answer(rows_of, dataset):
    of_data = dataset(INSTRUCT, ASKED[INSTRUCT])
    with pytest.raises(UserError, match=r"dataset: 3 bad rows"):
        rows_of(dataset=of_data, rollouts=None)
    with pytest.raises(UserError, match=r"dataset_val: 3 bad rows"):
        rows_of(dataset_val=of_data)


def test_a_row_with_what_is_no_answer_is_bad_nonetheless(rows_of, dataset):
    with pytest.raises(UserError, match="1 bad row"):
        rows_of(dataset=dataset(INSTRUCT, [*ROWS[:7], {"instruction": QUESTION, "output": 7}]))


def test_a_prompt_that_is_cut_is_left_out(rows_of, dataset, capsys):
    long = {"instruction": "plus " * 200}
    rows = rows_of(dataset=dataset(INSTRUCT, [*ASKED[INSTRUCT], long]))
    assert len(rows._steps.plan.datasets[0]) == 3
