"""Every kind of bad row and bad file, with the message that a user sees."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import ROWS

from distill_tune.config import instantiate
from distill_tune.data import describe_rows, prepare_rows
from distill_tune.errors import UserError

GOOD = {"instruction": "What is 1 plus 1?", "output": "1 plus 1 is 2, done."}


@pytest.fixture
def prepare(tokenizer_file: Path):
    config = OmegaConf.create(
        {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file), "max_seq_len": 64}
    )

    def run(component: str, on_bad_row: str = "stop", **arguments: object):
        dataset = OmegaConf.create({"_component_": component, **arguments})
        return prepare_rows(dataset, instantiate(config), config, on_bad_row=on_bad_row)[0][0]

    return run


def jsonl(path: Path, *rows: object) -> str:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    )
    return str(path)


OURS, THEIRS, CHAT = "distill_tune.data.instruct", "torchtune.datasets.alpaca_dataset", "distill_tune.data.chat"


@pytest.mark.parametrize(
    ("component", "bad", "reason"),
    [
        (
            OURS,
            {"instruction": "a"},
            "no field output or response or completion or answer; it has instruction: "
            "name it with column_map: {response: ...}",
        ),
        (OURS, {"instruction": "a", "output": 5}, "field output must be text, found int '5'"),
        (OURS, {"instruction": None, "output": "b"}, "field instruction must be text, found nothing"),
        (OURS, {"instruction": "a", "output": "  "}, "the answer is empty"),
        (OURS, {"instruction": " ", "input": "", "output": "b"}, "a question is empty"),
        (OURS, {"instruction": "a", "output": "b", "history": [["", "c"]]}, "a question is empty"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "b"}]},
            "a question is empty",
        ),
        (OURS, '{"instruction": "a", "output": ', "broken JSON at column 32: Expecting value"),
        (OURS, "[1, 2]", "must be an object with fields, found list"),
        (THEIRS, {"instruction": "a", "input": ""}, "no field output"),
        (THEIRS, {"instruction": "a", "output": 5}, "cannot be used: "),
        (CHAT, {"message": []}, "no field messages; it has message"),
        (
            CHAT,
            {"instruction": "a", "output": "b"},
            "no field messages; it has instruction, output: take distill_tune.data.instruct",
        ),
        (CHAT, {"messages": "hello"}, "messages must be a list of turns, found str 'hello'"),
        (
            CHAT,
            {"messages": [{"role": "robot", "content": "a"}]},
            "turn 1 has the role 'robot'; known are system, user",
        ),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, "turn 1 has no text, found int '3'"),
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}, "no answer: there is no assistant turn with text"),
        (CHAT, {"messages": ["a"]}, "turn 1 must have a role and a content, found str 'a'"),
        ("distill_tune.data.text", {"txt": "a"}, "no field text; it has txt"),
        ("distill_tune.data.text", {"text": " "}, "the text is empty"),
    ],
)
def test_a_bad_row_is_named_or_skipped(prepare, tmp_path, component, bad, reason):
    good = {
        CHAT: {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        "distill_tune.data.text": {"text": "hello you"},
    }.get(component, GOOD)
    source = jsonl(tmp_path / "rows.jsonl", good, bad, good)
    with pytest.raises(UserError) as caught:
        prepare(component, source=source)
    assert f"{source}, row 2: {reason}" in str(caught.value)
    assert "on_bad_row=skip" in str(caught.value)
    rows = prepare(component, "skip", source=source)
    assert (len(rows), rows.num_bad) == (2, 1)
    assert "1 bad row left out" in describe_rows([rows])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", '[{"instruction": "a"', "broken JSON at line 1, column 21: Expecting ',' delimiter"),
        (
            "rows.json",
            '{"data": [{"a": 1}]}',
            "must be a list of rows, found one object; name the list with field: data",
        ),
        ("rows.json", "5", "must be a list of rows, found int"),
        ("rows.json", "[]", "is empty: there is no row to read"),
        ("rows.jsonl", "", "is empty: there is no row to read"),
        ("rows.jsonl", b"\xff\xfe{}", "not utf-8 at byte 0; save it as UTF-8"),
        ("rows.parquet", b"PAR1 not really", "not a Parquet file"),
        ("rows.xlsx", b"PK", "cannot be read; known are .json, .jsonl"),
    ],
)
def test_a_bad_file_is_named(prepare, tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        prepare(OURS, source=str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_file_folder_or_hub_name_says_so(prepare, tmp_path):
    with pytest.raises(UserError, match=r"dataset /nowhere/rows\.json: no such file or folder"):
        prepare(OURS, source="/nowhere/rows.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: the folder has no \.json"):
        prepare(OURS, source=str(tmp_path / "empty"))
    with pytest.raises(UserError, match="nobody/nothing: neither a local file nor to be had from the hub"):
        prepare(OURS, source="nobody/nothing")


def test_a_csv_row_with_too_few_columns_is_named(prepare, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('instruction,output\nwhat,"a, b"\nonly one\n')
    with pytest.raises(UserError, match=r"rows\.csv, row 3: has not the 2 columns of the header"):
        prepare(OURS, source=str(path))


def test_an_answer_that_max_seq_len_cuts_away_is_counted_and_skipped(prepare, tmp_path):
    long = {"instruction": "What is this? " * 60, "output": "done."}
    rows = prepare(OURS, source=jsonl(tmp_path / "rows.jsonl", GOOD, long))
    assert (len(rows), rows.num_cut) == (1, 1)
    assert "1 row left out whose answer max_seq_len cuts away" in describe_rows([rows])
    with pytest.raises(UserError, match=r"has no row to train on \(1 whose answer max_seq_len=64 cuts away: raise"):
        prepare(OURS, source=jsonl(tmp_path / "long.jsonl", long))


def test_a_cut_row_does_not_end_with_a_learned_eos(prepare, tmp_path):
    row = {"instruction": "a", "output": "one two three four five six seven " * 20}
    rows = prepare(OURS, source=jsonl(tmp_path / "rows.jsonl", row))
    tokens, labels = rows[0][:2]
    assert len(tokens) == 64
    assert tokens[-1] != 2
    assert labels[-1] == tokens[-1]


def test_the_same_rows_from_every_format_give_the_same_tokens(prepare, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{key: row[key] for key in ("instruction", "output")} for row in ROWS]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "lines.json").write_text("\n".join(map(json.dumps, rows)))
    jsonl(tmp_path / "a.jsonl", *rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines = [f'"{row["instruction"]}","{row["output"]}"\n' for row in rows]
    (tmp_path / "a.csv").write_text("\ufeffinstruction,output\n" + "".join(lines))
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "1.jsonl", *rows[:30])
    jsonl(tmp_path / "folder" / "2.jsonl", *rows[30:])
    wanted = prepare(OURS, source=str(tmp_path / "a.json"))
    for name in ("lines.json", "a.jsonl", "a.parquet", "a.csv", "folder"):
        assert prepare(OURS, source=str(tmp_path / name)).tokens.equal(wanted.tokens), name
    renamed = prepare(OURS, source="json", data_files=str(tmp_path / "a.jsonl"), split="train[:50%]")
    assert len(renamed) == len(wanted) // 2


def test_chats_of_every_kind_learn_the_assistants_turns_alone(prepare, tmp_path):
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": ""},
    ]
    sharegpt = [{"from": "human" if m["role"] == "user" else m["role"], "value": m["content"]} for m in messages]
    first = prepare(CHAT, source=jsonl(tmp_path / "a.jsonl", {"messages": messages}))
    second = prepare(CHAT, source=jsonl(tmp_path / "b.jsonl", {"conversations": sharegpt}))
    assert first.tokens.equal(second.tokens)
    assert 0 < first.supervised.sum() < 10
    chinese = {"messages": [{"role": "user", "content": "你好吗？"}, {"role": "assistant", "content": "我很好。"}]}
    assert prepare(CHAT, source=jsonl(tmp_path / "zh.jsonl", chinese)).supervised.sum() > 4


def test_the_second_run_finds_the_first_ones_cache(prepare, tmp_path, monkeypatch):
    source = jsonl(tmp_path / "rows.jsonl", GOOD)
    first = prepare(OURS, source=source)
    monkeypatch.setattr("distill_tune.data.prepare._tokenise", None)  # would fail if it were called
    assert prepare(OURS, source=source).tokens.equal(first.tokens)
    jsonl(tmp_path / "rows.jsonl", GOOD, GOOD)
    with pytest.raises(TypeError):  # another content is not found
        prepare(OURS, source=source)
