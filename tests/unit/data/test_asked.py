"""What rows ask, whether or not they have answers; and answers that were cut when they were made."""

import json

import numpy
import pytest
from omegaconf import OmegaConf
from template_families import assistant, system, templates_folder, tokenizer_of, user

from distill_tune import data
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, prompt_tokens, tokenise
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError


@pytest.fixture
def asked(tmp_path):
    """What a row asks, as a dataset of this kind tells it: (role, content) of each turn."""

    def of(row, component=data.chat, **arguments):
        (tmp_path / "rows.json").write_text(json.dumps([row]))
        dataset = component(None, str(tmp_path / "rows.json"), **arguments)
        return [(turn["role"], turn["content"]) for turn in dataset.asked(dataset.rows[0]).turns]

    return of


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("How?")]},
        {"messages": [user("How?"), assistant("")]},
        {"messages": [user("How?"), assistant("So.")]},
        {"conversations": [{"from": "human", "value": "How?"}, {"from": "gpt", "value": "So."}]},
        {"prompt": [user("How?")]},
        {"prompt": [user("How?")], "completion": [assistant("So.")]},
        {"prompt": "How?"},
        {"instruction": "How?", "input": "", "output": "So."},
        {"question": "How?", "answer": "So."},
        {"text": "How?"},
        {"system": "", "text": "How?"},
    ],
)
@pytest.mark.parametrize("component", [data.chat, data.instruct, data.text])
def test_rows_of_all_kinds_ask_with_and_without_an_answer(asked, row, component):
    assert asked(row, component) == [("user", "How?")]


def test_what_goes_before_the_question_is_kept(asked):
    row = {"instruction": "And now?", "input": "a text", "history": [["How?", "So."]], "system": "Be brief."}
    before = [("system", "Be brief."), ("user", "How?"), ("assistant", "So.")]
    assert asked(row, data.instruct) == [*before, ("user", "And now?\n\na text")]
    turns = [user("How?"), assistant("So."), user("And now?"), assistant("Thus.")]
    told = [("system", "Be short."), ("user", "How?"), ("assistant", "So."), ("user", "And now?")]
    assert asked({"messages": turns}, system_prompt="Be short.") == told
    assert asked({"messages": [system("Be long."), *turns]}, system_prompt="Be short.")[0] == ("system", "Be long.")


def test_columns_are_found_by_the_names_that_a_config_gives(asked):
    assert asked({"问题": "How?"}, data.instruct, column_map={"prompt": "问题"}) == [("user", "How?")]
    assert asked({"talk": [user("How?")]}, column_map={"messages": "talk"}) == [("user", "How?")]
    assert asked({"line": "How?"}, data.text, column_map={"text": "line"}) == [("user", "How?")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"id": 3}, "nothing is asked: no field messages, conversations, instruction, prompt, question or text"),
        ({"messages": [system("Be brief.")]}, "nothing is asked"),
        ({"messages": [assistant("So.")]}, "nothing is asked"),
        ({"instruction": " "}, "a question is empty"),
        ({"text": 3}, "field text must be text"),
    ],
)
def test_a_row_that_asks_nothing_is_told(asked, row, told):
    with pytest.raises(RowError, match=told):
        asked(row)


def test_each_line_of_a_text_file_that_is_not_empty_is_a_row(tmp_path):
    (tmp_path / "prompts.txt").write_text("How?\r\n\n  \nAnd why?\n你好")
    rows = data.text(None, str(tmp_path / "prompts.txt")).rows
    assert [row["text"] for row in rows] == ["How?", "And why?", "你好"]
    assert [rows.origin(number)[1] for number in range(3)] == [1, 4, 5]


def test_a_folders_text_files_are_no_rows(tmp_path):
    (tmp_path / "notes.txt").write_text("Do not learn this.\n")
    with pytest.raises(UserError, match=r"it has notes\.txt"):
        data.text(None, str(tmp_path))


TEMPLATES = sorted(templates_folder().glob("*.jinja"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_answer_that_was_cut_is_learned_to_its_last_word_and_without_an_end(path):
    tokenizer = tokenizer_of(path.read_text(encoding="utf-8"))
    whole = Conversation((user("Is 7 a prime?"), assistant("It may well be")), (False, True))
    try:
        tokens = tokenise(tokenizer, whole)
    except (RowError, UserError):
        pytest.skip("a template that cannot be used")
    cut = tokenise(tokenizer, Conversation(whole.turns, whole.learned, is_cut=True))
    assert tokenizer.decode(cut.tokens[-4:]) == "l be"
    assert cut.is_cut and len(cut.tokens) < len(tokens.tokens)
    assert numpy.array_equal(cut.tokens, tokens.tokens[: len(cut.tokens)])
    assert numpy.array_equal(cut.labels, tokens.labels[: len(cut.labels)])


@pytest.mark.parametrize("how", ["length", "repetition"])
def test_rows_say_how_they_ended_and_what_they_say_of_themselves_is_not_told(tmp_path, student_folder, how):
    rows = [
        {
            "messages": [user("What is 1 plus 2?"), assistant("1 plus 2 is 3, and")],
            "finish_reason": reason,
            "generated": {"seed": 0},
        }
        for reason in (how, "stop")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"_component_": "distill_tune.data.chat", "source": str(tmp_path / "rows.jsonl")}
    of_tokenizer = {"_component_": "torchtune.models.llama2.llama2_tokenizer"}
    of_tokenizer = OmegaConf.create(of_tokenizer | {"path": str(student_folder / "tokenizer.model")})
    from distill_tune import config

    tokenizer = config.instantiate(of_tokenizer)
    for _ in range(2):  # as tokenised, and as kept
        (found,), _ = data.prepare_rows(OmegaConf.create(settings), tokenizer, of_tokenizer)
        (cut, ended) = (found[number].labels for number in range(2))
        assert ended[-1] == tokenizer.eos_id
        assert (cut == ended[: len(cut)]).all() and len(cut) < len(ended) and tokenizer.eos_id not in cut
        told = data.describe_rows([found])
        assert "1 answer cut when made, learned without an end" in told
        assert "nobody reads" not in told


def test_a_prompt_is_what_stands_before_the_answer_in_the_row_that_is_learned(tmp_path, student_folder):
    from torchtune.models.llama2 import llama2_tokenizer

    for tokenizer in (
        llama2_tokenizer(str(student_folder / "tokenizer.model")),
        tokenizer_of((templates_folder() / "qwen3.jinja").read_text()),
    ):
        turns = (user("What is 1 plus 2?"), assistant("3"), user("And 2 plus 2?"))
        row = tokenise(tokenizer, Conversation((*turns, assistant("4")), (False, False, False, True)))
        prompt = prompt_tokens(tokenizer, turns)
        assert row.tokens[: len(prompt)].tolist() == prompt
        assert (row.labels[: len(prompt)] == IGNORE_INDEX).all() and row.labels[len(prompt)] != IGNORE_INDEX
