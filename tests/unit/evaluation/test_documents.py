"""Documents as each tokenizer writes them: whole, and with the bytes of the same text."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import ROWS
from tiny_tokenizer import write_tokenizer

from distill_tune.data import hf_tokenizer
from distill_tune.data.prompts import Prompt
from distill_tune.errors import UserError
from distill_tune.evaluation import Reading, read_documents

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)  # isort: skip
from torchtune.models.llama2 import llama2_tokenizer

ANSWER = "七 is a prime."
CHAT = [{"role": "user", "content": "Is 7 a prime?"}, {"role": "assistant", "content": ANSWER}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def of_rows(folder: Path, rows: list, kind: str, readings: list[Reading], **settings):
    (folder / "rows.json").write_text(json.dumps(rows))
    name = kind if "." in kind else f"distill_tune.data.{kind}"
    of_alpaca = {"train_on_input": False} if kind.endswith("alpaca_dataset") else {}
    component = {"_component_": name, "source": str(folder / "rows.json"), **of_alpaca}
    return read_documents(OmegaConf.create(component), readings, **settings)


@pytest.fixture
def both(folder, tokenizer_file) -> list[Reading]:
    """A byte-level tokenizer with a chat template, and SentencePiece's, which begins with a token and a space."""
    return [Reading(hf_tokenizer(str(folder), max_seq_len=8)), Reading(llama2_tokenizer(str(tokenizer_file), 8))]


@pytest.mark.parametrize(
    ("row", "kind"), [({"messages": CHAT}, "chat"), ({"prompt": CHAT[0]["content"], "response": ANSWER}, "instruct")]
)
def test_each_tokenizer_has_the_bytes_of_the_same_text_and_no_row_is_cut(folder, both, row, kind):
    documents = of_rows(folder, [row], kind, both)
    for (written,) in documents.written:
        assert written.supervised_bytes == len(ANSWER.encode()) == 15
        assert written.num_bytes == 15 + len(CHAT[0]["content"])
        assert len(written.tokens) > 8
        assert written.supervised.sum() > written.is_text[written.supervised].sum() > 0  # the end is no text
    (document,) = documents.documents
    assert (document.prompt, document.reference) == (CHAT[0]["content"], ANSWER)


def test_the_text_of_supervised_tokens_is_the_answer(folder, both):
    documents = of_rows(folder, [{"messages": CHAT}], "chat", both)
    for reading, (written,) in zip(both, documents.written, strict=True):
        assert reading.tokenizer.decode(written.tokens[written.supervised & written.is_text].tolist()).strip() == ANSWER
        assert list(written.prompt) == written.tokens[: len(written.prompt)].tolist()
        assert written.supervised[len(written.prompt)]


def test_plain_text_is_scored_from_its_second_token_where_nothing_begins_it(folder, both):
    (of_bytes,), (of_pieces,) = of_rows(folder, [{"text": ANSWER}], "text", both).written
    assert of_pieces.num_bytes == of_pieces.supervised_bytes == 15  # behind <s>
    first = 1  # byte of the first character, its first token
    assert of_bytes.num_bytes == of_bytes.supervised_bytes == 15 - first
    assert of_bytes.prompt is of_pieces.prompt is None


@pytest.mark.parametrize(
    ("which", "told"),
    [([0], "a control token"), ([1], "each document begins with a control token, which is read and not scored")],
)
def test_how_a_first_token_is_treated_is_said(folder, both, which, told):
    documents = of_rows(folder, [{"messages": CHAT}], "chat", [both[place] for place in which])
    assert told in documents.scored and "UTF-8" in documents.scored


def test_a_row_that_cannot_be_written_is_left_out_and_told(folder, both):
    documents = of_rows(folder, [{"messages": CHAT}, {"messages": 3}, {"messages": CHAT}], "chat", both)
    assert len(documents) == 2 and all(len(of) == 2 for of in documents.written)
    assert "2 documents" in documents.told() and "1 row left out" in documents.told()
    assert "rows.json, row 2: " in documents.told()
    with pytest.raises(UserError, match=r"dataset_test .*rows.json: has no row that can be scored\n  .*row 1: "):
        of_rows(folder, [{"messages": 3}], "chat", both)


def test_categories_are_those_of_a_column_and_documents_are_known_by_what_they_contain(folder, both):
    rows = [{"messages": CHAT, "topic": "numbers"}, {"messages": [*CHAT[:1], CHAT[1] | {"content": "no"}]}]
    first, second = of_rows(folder, rows, "chat", both[:1], category_column="topic").documents
    assert (first.category, second.category) == ("numbers", None)
    assert first.identity != second.identity
    turned = of_rows(folder, rows[::-1], "chat", both[:1], category_column="topic").documents
    assert [document.identity for document in turned] == [second.identity, first.identity]


def test_no_more_documents_are_read_than_are_asked_for(folder, both):
    assert len(of_rows(folder, ROWS, "instruct", both[1:], most=5)) == 5


def test_rows_of_torchtunes_own_datasets_have_the_bytes_that_their_tokens_write(folder, both):
    documents = of_rows(folder, [{"text": "7 is a prime."}], "torchtune.datasets.text_completion_dataset", both[1:])
    ((written,),) = documents.written
    assert written.supervised_bytes == 13 and written.prompt is None
    rows = of_rows(folder, ROWS[:2], "torchtune.datasets.alpaca_dataset", both[1:])
    for document, written, row in zip(rows.documents, rows.written[0], ROWS, strict=False):
        assert document.reference.strip() == row["output"] and written.supervised_bytes == len(row["output"])
        assert not written.supervised[: len(written.prompt)].any() and written.supervised[len(written.prompt)]


def test_a_teacher_may_read_another_prompt_and_must_read_the_same_answer(folder, both):
    own = Reading(both[0].tokenizer, Prompt(None, "Think well.", "teacher_prompt_template"))
    (of_student,), (of_teacher,) = of_rows(folder, [{"messages": CHAT}], "chat", [both[0], own]).written
    assert len(of_teacher.tokens) > len(of_student.tokens)
    assert of_teacher.tokens[of_teacher.supervised].tolist() == of_student.tokens[of_student.supervised].tolist()


def test_the_space_that_sentencepiece_writes_before_a_text_is_none_of_its_bytes(folder, tokenizer_file):
    tokenizer = llama2_tokenizer(str(tokenizer_file))
    encode = tokenizer.encode
    tokenizer.encode = lambda *arguments, **settings: encode(*arguments, **(settings | {"add_bos": False}))
    pieces = tokenizer.encode("七 is", add_eos=False)
    documents = of_rows(folder, [{"text": "七 is"}], "text", [Reading(tokenizer)])
    ((written,),) = documents.written
    assert written.tokens[: len(pieces)].tolist() == pieces
    first = len(tokenizer.decode(pieces[:1]).encode())  # which nothing predicts
    assert written.num_bytes == len("七 is".encode()) - first
