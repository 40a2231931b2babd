"""What of rows is not learned is counted and told, also where they come out of the cache."""

import json

import pytest
import tiny_tokenizer
from omegaconf import OmegaConf

from distill_tune.config import instantiate
from distill_tune.data import Reading, describe_rows, prepare_rows
from distill_tune.data.conversation import Conversation, Tokens, tokenise
from distill_tune.data.datasets import TokenisedDataset
from distill_tune.errors import UserError


@pytest.fixture(params=["chatml", "torchtune"])
def tokenizer(request, tmp_path, tokenizer_file):
    if request.param == "torchtune":
        return {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file)}
    tiny_tokenizer.write_tokenizer(tmp_path)
    return {"_component_": "distill_tune.data.hf_tokenizer", "path": str(tmp_path)}


def prepared(tokenizer, dataset, max_seq_len=None, reading=None, **more):
    config = OmegaConf.create({**tokenizer, "max_seq_len": max_seq_len})
    (rows,), _ = prepare_rows(
        OmegaConf.create(dataset), instantiate(config), config, reading=reading or Reading(), **more
    )
    return rows, instantiate(config)


def chats(tmp_path, *answers):
    path = tmp_path / "rows.json"
    turns = [[{"role": "user", "content": "hello"}, {"role": "assistant", "content": answer}] for answer in answers]
    path.write_text(json.dumps([{"messages": of_row} for of_row in turns]))
    return {"_component_": "distill_tune.data.chat", "source": str(path)}


@pytest.mark.parametrize("packed", [False, True])
def test_rows_that_are_cut_are_counted_with_those_that_lose_their_end(tmp_path, tokenizer, packed):
    dataset = chats(tmp_path, *["there " * 80] * 3, "there", "there") | {"packed": packed}
    whole, read_with = prepared(tokenizer, dataset, max_seq_len=9999)
    assert describe_rows([whole]).endswith(" of them supervised")
    rows, _ = prepared(tokenizer, dataset, max_seq_len=90)
    lost = int(whole.lengths.sum() - rows.lengths.sum())
    assert (rows.num_shortened, rows.num_without_end, rows.num_tokens_cut) == (3, 3, lost)
    told = f"; 3 rows cut at max_seq_len=90 ({lost:,} tokens), 3 of them without their end"
    assert describe_rows([rows]).endswith(f" of them supervised{told}")
    again, _ = prepared(tokenizer, dataset, max_seq_len=90)  # out of the cache
    assert describe_rows([again]) == describe_rows([rows])
    ends = [int(rows[row].labels[rows[row].labels != -100][-1]) for row in range(5)]
    assert [end == read_with.eos_id for end in ends] == [False] * 3 + [True] * 2
    assert all(read_with.eos_id not in rows[row].labels.tolist() for row in range(3))


def test_empty_answers_are_counted_also_out_of_the_cache(tmp_path, tokenizer):
    said = [{"role": role, "content": text} for role, text in zip("uaua", ["hello", "", "hello", "there"], strict=True)]
    roles = {"u": "user", "a": "assistant"}
    turns = [turn | {"role": roles[turn["role"]]} for turn in said]
    (tmp_path / "rows.json").write_text(json.dumps([{"messages": turns}, {"messages": turns[2:]}]))
    dataset = {"_component_": "distill_tune.data.chat", "source": str(tmp_path / "rows.json")}
    for _ in range(2):
        rows, _ = prepared(tokenizer, dataset)
        assert describe_rows([rows, rows]).endswith("supervised; 2 empty answers, not learned")


def test_what_is_cut_behind_the_answer_loses_no_end(tmp_path):
    tiny_tokenizer.write_tokenizer(tmp_path)  # its template writes a new line behind the answer's end
    tokenizer = {"_component_": "distill_tune.data.hf_tokenizer", "path": str(tmp_path)}
    whole, _ = prepared(tokenizer, chats(tmp_path, "there"))
    rows, _ = prepared(tokenizer, chats(tmp_path, "there"), max_seq_len=int(whole.lengths[0]) - 1)
    assert (rows.num_shortened, rows.num_without_end, rows.num_tokens_cut) == (1, 0, 1)
    assert rows.supervised.tolist() == whole.supervised.tolist()


def test_plain_text_that_is_cut_is_counted(tmp_path, tokenizer):
    path = tmp_path / "text.json"
    path.write_text(json.dumps([{"text": "hello there " * 60}, {"text": "hello"}]))
    dataset = {"_component_": "distill_tune.data.text", "source": str(path)}
    whole, _ = prepared(tokenizer, dataset)
    rows, _ = prepared(tokenizer, dataset, max_seq_len=50)
    assert (rows.num_shortened, rows.num_without_end) == (1, 1)
    assert rows.num_tokens_cut == int(whole.lengths.sum() - rows.lengths.sum())


def test_a_row_whose_whole_answer_is_cut_is_counted_apart(tmp_path, tokenizer):
    dataset = chats(tmp_path, "there", "there")
    path = tmp_path / "rows.json"
    found = json.loads(path.read_text())
    found[0]["messages"][0]["content"] = "hello " * 90
    path.write_text(json.dumps(found))
    rows, _ = prepared(tokenizer, dataset, max_seq_len=90)
    assert (len(rows), rows.num_cut, rows.num_shortened) == (1, 1, 0)
    assert "1 row left out whose answer max_seq_len cuts away" in describe_rows([rows])


def test_the_teachers_bound_cuts_the_students_answer_too(tmp_path, tokenizer):
    dataset = chats(tmp_path, "there " * 200)
    reading = Reading(teacher_system_prompt="hello there " * 4, teacher_max_seq_len=150)
    rows, _ = prepared(tokenizer, dataset, reading=reading)
    assert (rows.num_shortened, rows.num_without_end) == (1, 1)
    assert "; 1 row cut at max_seq_len (" in describe_rows([rows])


class Rows(list):
    fingerprint = "rows of test_rows_told"


def dataset(tokenizer):
    """Rows of which a tokenizer drops the reasoning, and of which nobody reads a column."""

    def conversation(row):
        turns = ({"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]})
        return Conversation(turns, (False, True))

    def tokens(row):
        found = Tokens(*tokenise(tokenizer, conversation(row))[:3], ("reasoning",) if "id" in row else ())
        return found._asdict()

    rows = Rows({"question": "hello", "answer": "there", "source": "here"} for _ in range(4))

    def unread(row):
        return tuple(name for name in row if name not in ("question", "answer"))

    return TokenisedDataset(Rows([*rows[:3], {**rows[3], "id": 3}]), tokens, conversation=conversation, unread=unread)


def test_what_the_template_drops_and_what_nobody_reads_is_named_once(tokenizer):
    component = {"_component_": f"{__name__}.dataset"}
    for _ in range(2):  # then out of the cache
        rows, _ = prepared(tokenizer, component)
        assert describe_rows([rows]).splitlines()[1:] == [
            "the chat template does not write, so it is not learned: reasoning (in 1 row)",
            "nobody reads: source (in 4 rows), id (in 1 row)",
        ]
    assert describe_rows([rows, rows]).splitlines()[2] == "nobody reads: source (in 8 rows), id (in 2 rows)"


def test_bad_rows_are_told_also_where_the_others_come_out_of_the_cache(tmp_path, tokenizer):
    dataset = chats(tmp_path, "there", "", "there")
    rows, _ = prepared(tokenizer, dataset, on_bad_row="skip")
    assert (len(rows), rows.num_bad) == (2, 1)
    assert "rows.json, row 2: no answer" in rows.faults[0]
    with pytest.raises(UserError, match=r"dataset: 1 bad row; mend what is told, .*=skip\n  .*rows.json, row 2: "):
        prepared(tokenizer, dataset)


def test_where_no_row_is_good_their_faults_are_told(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"has no row to train on\n  .*rows.json, row 1: no answer"):
        prepared(tokenizer, chats(tmp_path, ""), on_bad_row="skip")
