"""What rows say, as the tokenizer is given it: turns, tools, and which turns are learned."""

import json

import numpy
import pytest

from distill_tune.data import Reading, chat, instruct, text
from distill_tune.data.conversation import Tokens
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError


class Recorder:
    """A tokenizer that keeps what it is given."""

    def tokenise_conversation(self, conversation):
        self.given = conversation
        return Tokens(numpy.zeros(1, numpy.int32), numpy.zeros(1, numpy.int32))

    def encode(self, text, add_bos, add_eos):
        return [1] * len(text)


@pytest.fixture
def read(tmp_path):
    """A row as a dataset gives it to its tokenizer."""

    def reading(row, component=chat, **arguments):
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        tokenizer = Recorder()
        component(tokenizer, str(tmp_path / "rows.json"), **arguments)[0]
        return tokenizer.given

    return reading


@pytest.fixture
def unread(tmp_path):
    def of(row, component=chat, **arguments):
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        dataset = component(Recorder(), str(tmp_path / "rows.json"), **arguments)
        return dataset.unread(dataset.rows[0])

    return of


def said(*turns):
    """Turns of user, assistant, user and so on."""
    return [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]


def spoken(conversation):
    return [(turn["role"], turn["content"]) for turn in conversation.turns]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_kept_under_the_name_that_templates_read(read, name):
    (_, turn) = read({"messages": [*said("7?"), {"role": "assistant", "content": "yes", name: "It is odd."}]}).turns
    assert turn == {"role": "assistant", "content": "yes", "reasoning_content": "It is odd."}


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
        {"name": "weather", "arguments": {"city": "Bern"}},
        json.dumps({"name": "weather", "arguments": '{"city": "Bern"}'}),
    ],
)
def test_calls_are_given_in_one_form_with_their_arguments_as_a_mapping(read, call):
    row = {"tools": [TOOL], "messages": [*said("?"), {"role": "assistant", "content": None, "tool_calls": [call]}]}
    conversation = read(row)
    assert conversation.turns[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert conversation.learned == (False, True)
    assert conversation.tools == (TOOL,)
    assert read(row | {"tools": json.dumps([TOOL])}).tools == (TOOL,)
    assert read(row | {"tools": [json.dumps(TOOL)]}).tools == (TOOL,)
    assert read(row | {"tools": []}).tools is None


def test_results_of_calls_and_what_else_a_turn_has_go_on_to_the_template(read):
    result = {"role": "tool", "content": "sunny", "name": "weather", "tool_call_id": "c1", "extra": 3, "nothing": None}
    call = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL | {"id": "c1"}]}
    conversation = read({"messages": [*said("?"), call, result, *said("", "It is sunny.")[1:]]})
    assert conversation.turns[1]["tool_calls"] == [CALL | {"id": "c1"}]
    assert conversation.turns[2] == {key: value for key, value in result.items() if value is not None}
    assert conversation.learned == (False, True, False, True)


def test_calls_and_results_in_the_spelling_of_sharegpt_and_of_older_rows(read):
    call = json.dumps({"name": "weather", "arguments": {"city": "Bern"}})
    turns = [
        ("human", "?"),
        ("function_call", call),
        ("function_call", call),
        ("observation", "sunny"),
        ("gpt", "Sun."),
    ]
    conversation = read({"conversations": [{"from": role, "value": value} for role, value in turns]})
    assert spoken(conversation) == [("user", "?"), ("assistant", ""), ("tool", "sunny"), ("assistant", "Sun.")]
    assert conversation.turns[1]["tool_calls"] == [CALL, CALL]
    assert conversation.learned == (False, True, False, True)
    older = {"role": "assistant", "content": None, "function_call": json.loads(call)}
    row = {"functions": [TOOL["function"]], "messages": [*said("?"), older, {"role": "function", "content": "sunny"}]}
    conversation = read(row)
    assert conversation.tools == (TOOL,)
    assert [turn["role"] for turn in conversation.turns] == ["user", "assistant", "tool"]
    assert conversation.turns[1]["tool_calls"] == [CALL]


def test_a_content_of_parts_is_their_text(read):
    parts = [{"type": "text", "text": "One "}, {"text": "and "}, "two."]
    assert spoken(read({"messages": [*said("?"), {"role": "assistant", "content": parts}]}))[1][1] == "One and two."
    with pytest.raises(RowError, match="turn 1 has a part that is no text: image_url"):
        read({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, *said("", "a")[1:]]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"weight": 0}, {"weight": 1}),
        ({"weight": 0.0}, {}),
        ({"train": False}, {"train": True}),
        ({"loss": False}, {"loss": None}),
        ({"loss_mask": 0}, {"loss_mask": 1}),
    ],
)
def test_a_turn_that_says_so_is_not_learned(read, first, second):
    turns = said("a", "no", "b", "yes")
    turns[1] |= first
    turns[3] |= second
    conversation = read({"messages": turns})
    assert conversation.learned == (False, False, False, True)
    assert list(conversation.turns[1]) == ["role", "content"]
    assert read({"messages": turns}, train_on_input=True).learned == (True, False, True, True)


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        ({"weight": 0.5}, "turn 2 has weight=0.5: only 0 and 1, false and true, can be heeded"),
        ({"train": "no"}, "turn 2 has train='no': only 0 and 1"),
        ({"weight": 1, "train": False}, "turn 2 contradicts itself: weight=1, train=False"),
        ({"train_detail": [{"begin": 0, "end": 1, "train": True}]}, "turn 2 has train_detail: a turn is learned whole"),
        ({"loss_scale": 1}, "turn 2 has loss_scale: a turn is learned whole"),
        ({"weight": 0}, "no answer: all turns are empty, or are marked as not to be learned"),
    ],
)
def test_what_a_turn_says_and_cannot_be_heeded_is_refused(read, mark, reason):
    turns = said("a", "b")
    turns[1] |= mark
    with pytest.raises(RowError, match=reason):
        read({"messages": turns})


def test_a_question_that_is_marked_is_learned_where_the_dataset_says_so(read):
    turns = said("a", "b", "c", "d")
    turns[0]["train"] = turns[3]["train"] = True
    with pytest.raises(RowError, match="a user turn is marked as one to be learned; train_on: marked learns"):
        read({"messages": turns})
    assert read({"messages": turns}, train_on="marked").learned == (True, False, False, True)
    with pytest.raises(RowError, match="no answer"):
        read({"messages": said("a", "b")}, train_on="marked")


def test_train_on_last_learns_the_last_answer_alone(read):
    row = {"messages": said("a", "b", "c", "d", "e")}
    assert read(row, train_on="last").learned == (False, False, False, True, False)
    assert read(row, train_on="last", train_on_input=True).learned == (True, False, True, True, True)
    history = {"instruction": "c", "output": "d", "history": [["a", "b"]]}
    assert read(history, instruct, train_on="last").learned == (False, False, False, True)
    assert read(history, instruct).learned == (False, True, False, True)
    for component, wrong in ((chat, "first"), (instruct, "marked")):
        with pytest.raises(UserError, match=rf"dataset\.train_on={wrong}: must be one of all, last"):
            read(row, component, train_on=wrong)


@pytest.mark.parametrize(("row", "shown"), [({"weight": 0}, "weight=0"), ({"train": False}, "train=False")])
def test_a_row_that_is_not_to_be_learned_is_refused_and_so_is_a_weight_of_its_own(read, row, shown):
    with pytest.raises(RowError, match=f"says {shown} of itself: it is not to be learned"):
        read({"messages": said("a", "b")} | row)
    with pytest.raises(RowError, match=r"the row has weight=0\.3: only 0 and 1"):
        read({"instruction": "a", "output": "b", "weight": 0.3}, instruct)
    assert read({"messages": said("a", "b"), "weight": 1, "train": "Eurostar", "loss": 2.5}).learned == (False, True)


def test_empty_answers_are_written_and_not_learned_and_at_the_end_are_a_prompt(read):
    conversation = read({"messages": said("a", "", "b", "c", "d", " ")})
    assert [text for _, text in spoken(conversation)] == ["a", "", "b", "c", "d"]
    assert conversation.learned == (False, False, False, True, False)
    assert conversation.num_empty == 2
    reasons = [*said("a"), {"role": "assistant", "content": "", "reasoning_content": "So."}]
    assert read({"messages": reasons}).learned == (False, True)


def test_empty_answers_are_counted_where_they_would_be_learned(read):
    turns = said("a", "", "b", "c", "d", "")
    assert read({"messages": turns}, train_on="last").num_empty == 1
    marked = [turn | {"train": turn["content"] != "a"} for turn in turns[1:]]
    assert read({"messages": [turns[0], *marked]}, train_on="marked").num_empty == 1
    assert read({"messages": [*turns[:5], turns[5] | {"train": False}]}).num_empty == 1
    row = {"instruction": "c", "output": "d", "history": [["a", ""]]}
    assert (read(row, instruct).learned, read(row, instruct).num_empty) == ((False, False, False, True), 1)


def test_of_a_question_and_its_input_one_may_be_empty(read):
    for row in ({"instruction": "", "input": "a"}, {"instruction": "a", "input": " "}):
        assert spoken(read(row | {"output": "b"}, instruct))[0] == ("user", "a")


@pytest.mark.parametrize("roles", ["au", "uaau", "ssua", "sausa"])
def test_turns_stay_in_whichever_order_they_are(read, roles):
    name = {"a": "assistant", "u": "user", "s": "system"}
    conversation = read({"messages": [{"role": name[role], "content": "x"} for role in roles]})
    assert [turn["role"] for turn in conversation.turns] == [name[role] for role in roles]
    assert conversation.learned == tuple(role == "a" for role in roles)


def test_a_column_system_goes_before_a_chat(read):
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "hello"}], "system": "Be kind."}
    assert spoken(read(row, system_prompt="Be brief."))[:2] == [("system", "Be kind."), ("user", "Hi")]
    assert spoken(read(row | {"system": ""}, system_prompt="Be brief."))[0] == ("system", "Be brief.")
    own = {"messages": [{"role": "developer", "content": "Be kind."}, *said("Hi", "hello")]}
    assert len(read(own | {"system": "Be kind."}, system_prompt="Be brief.").turns) == 3
    with pytest.raises(RowError, match="has a system turn and another text in its column system"):
        read(own | {"system": "Be brief."})


def test_a_completions_answers_are_learned_and_those_of_its_prompt_are_not(read):
    conversation = read({"prompt": said("a", "b", "c"), "completion": said("", "d", "e", "f")[1:], "system": "s"})
    assert [text for _, text in spoken(conversation)] == ["s", "a", "b", "c", "d", "e", "f"]
    assert conversation.learned == (False, False, False, False, True, False, True)
    assert spoken(read({"prompt": "[1]", "completion": "[2]"})) == [("user", "[1]"), ("assistant", "[2]")]
    with pytest.raises(RowError, match=r"field prompt is a list of turns; take distill_tune\.data\.chat"):
        read({"prompt": said("a"), "completion": said("", "b")[1:]}, instruct)
    with pytest.raises(RowError, match=r"it has messages: take distill_tune\.data\.chat"):
        read({"messages": said("a", "b")}, instruct)


def test_history_and_context_of_instructions_are_read(read):
    history = {"instruction": "And 8?", "input": "", "output": "no", "history": [["Is 7 a prime?", "yes"]]}
    assert [text for _, text in spoken(read(history, instruct))] == ["Is 7 a prime?", "yes", "And 8?", "no"]
    assert read(history | {"history": json.dumps(history["history"])}, instruct) == read(history, instruct)
    with pytest.raises(RowError, match=r"field history must be a list of \[question, answer\], found list"):
        read(history | {"history": [["alone"]]}, instruct)
    dolly = {"instruction": "When?", "context": "It opened in 1901.", "response": "In 1901."}
    assert spoken(read(dolly, instruct))[0] == ("user", "When?\n\nIt opened in 1901.")


def test_what_nobody_reads_is_named(unread):
    turns = [*said("a"), {"role": "assistant", "content": "b", "weight": 1, "mood": "good", "none": None}]
    row = {"messages": turns, "system": "s", "tools": [], "id": 5, "prompt": "a", "empty": "", "loss": 2.5}
    assert unread(row) == ("id", "prompt", "loss", "messages[].mood")
    dolly = {"instruction": "a", "response": "b", "context": "c", "category": "qa"}
    assert unread(dolly, instruct) == ("category",)
    assert unread(dolly | {"input": "d"}, instruct) == ("context", "category")
    assert unread({"text": "a", "url": "b"}, text) == ("url",)
    assert unread({"messages": "broken", "id": 5}) == ()


def test_what_the_prompts_read_is_known():
    reading = Reading(teacher_prompt_template="{input} {solution}", teacher_names=("a", "b"))
    assert reading.columns == {"solution", "teacher_id"}
    assert Reading(student_prompt_template="{input}").columns == frozenset()


def test_a_column_map_for_what_is_not_read_is_refused(read):
    with pytest.raises(UserError, match=r"dataset\.column_map\.output: nothing of that name is read; known are prompt"):
        read({"instruction": "a", "output": "b"}, instruct, column_map={"output": "b"})
    row = {"turns": said("a", "b"), "sys": "s", "functions_of": [TOOL]}
    conversation = read(row, column_map={"messages": "turns", "system": "sys", "tools": "functions_of"})
    assert (len(conversation.turns), conversation.tools) == (3, (TOOL,))
