"""Rows are found in a file without holding it, and are what reading it whole gives."""

import json
import random
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from distill_tune.data import file_rows, json_files, row_files
from distill_tune.data.sources import RowError, load_dataset
from distill_tune.errors import UserError


@pytest.fixture(params=[1, 7, 64])
def small_parts(request, monkeypatch):
    """Files are read so many bytes at a time, so that each row is cut somewhere."""
    monkeypatch.setattr(json_files, "_BLOCK", request.param)
    monkeypatch.setattr(file_rows, "_WINDOW", request.param)


def some_json(chance: random.Random, depth: int = 0) -> object:
    texts = ["", "a", "\\", '"', "]", "[{", "问题", "😀\ud83d\ude00"[:1], "\u2028", "\x00", ",", "é" * 9]
    kinds = [0, -12, 1.5e-7, 10**30, None, True, chance.choice(texts), "".join(chance.choices(texts, k=5))]
    if depth < 3:
        kinds.append([some_json(chance, depth + 1) for _ in range(chance.randrange(3))])
        kinds.append({chance.choice(texts): some_json(chance, depth + 1) for _ in range(chance.randrange(3))})
    return chance.choice(kinds)


@pytest.mark.parametrize("seed", range(4))
def test_rows_of_a_list_and_of_lines_are_what_the_whole_file_gives(small_parts, tmp_path, seed):
    chance = random.Random(seed)
    rows = [{"n": number, "v": some_json(chance)} for number in range(12)]
    layout = {"indent": chance.choice([None, 2]), "ensure_ascii": chance.random() < 0.5}
    bom = chance.choice(["", "\ufeff"])
    (tmp_path / "list.json").write_text(f"{bom} \n{json.dumps(rows, **layout)}\r\n ", encoding="utf-8")
    lines = "\n\r\n".join(json.dumps(row, ensure_ascii=layout["ensure_ascii"]) for row in rows)
    (tmp_path / "lines.jsonl").write_bytes((bom + lines).encode())
    (tmp_path / "lines.json").write_bytes((bom + "\n" + lines + "\n").encode())
    for name in ("list.json", "lines.jsonl", "lines.json"):
        found = load_dataset(str(tmp_path / name))
        assert list(found) == rows, name
        assert isinstance(found._rows[0], file_rows.JsonRows)
        chance.shuffle(order := list(range(12)))
        assert [found[index] for index in order] == [rows[index] for index in order]
    assert load_dataset(str(tmp_path / "lines.jsonl")).origin(2)[1] == 5


BROKEN = [
    '[{"a": 1}',
    '[{"a": 1},]',
    '[{"a": 1} {"a": 2}]',
    '[{"a": 1}] 2',
    '[{"a": 1,}]',
    "[",
    "[,]",
    "]",
    '[{"a": tru}]',
]


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_list_is_told_as_reading_it_whole_tells_it(small_parts, tmp_path, text):
    (tmp_path / "a.json").write_text("\n " + text)
    with pytest.raises(json.JSONDecodeError) as wanted:
        json.loads("\n " + text)
    place = f"line {wanted.value.lineno}, column {wanted.value.colno}: {wanted.value.msg}"
    with pytest.raises(UserError) as told:
        len(load_dataset(str(tmp_path / "a.json")))
    assert str(told.value) == f"dataset {tmp_path / 'a.json'}: broken JSON at {place}"


def test_other_encodings_and_line_ends_of_old_give_the_same_rows(tmp_path):
    rows = [{"text": f"行 {number}"} for number in range(3)]
    lines = "\r".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "old.jsonl").write_bytes(lines.encode())
    (tmp_path / "utf_16.jsonl").write_bytes(lines.replace("\r", "\n").encode("utf-16"))
    (tmp_path / "gbk.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode("gbk"))
    assert list(load_dataset(str(tmp_path / "old.jsonl"))) == rows
    assert list(load_dataset(str(tmp_path / "utf_16.jsonl"), encoding="utf-16")) == rows
    assert list(load_dataset(str(tmp_path / "gbk.json"), encoding="gbk")) == rows


def test_elements_that_are_no_rows_are_named_by_their_number(small_parts, tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, 12345678901, "text", [{}], {"a": 2}]')
    rows = load_dataset(str(tmp_path / "a.json"))
    for index, kind in ((1, "int"), (2, "str"), (3, "list")):
        with pytest.raises(RowError, match=f"must be an object with fields, found {kind}"):
            rows[index]
    kept = rows.filter(lambda row: row["a"] > 1)  # what cannot be read is not lost by it
    assert [kept.origin(index)[1] for index in range(len(kept))] == [2, 3, 4, 5]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
def test_a_files_rows_are_not_all_held_as_objects(tmp_path, monkeypatch, name):
    monkeypatch.setattr(json_files, "_BLOCK", 2**14)
    monkeypatch.setattr(file_rows, "_WINDOW", 2**14)
    rows = [{"instruction": f"{number} " * 20, "output": "a few words " * 60} for number in range(3000)]
    path = tmp_path / name
    if name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression=None, use_dictionary=False)
    else:
        path.write_text(json.dumps(rows) if name == "rows.json" else "\n".join(map(json.dumps, rows)))
    size = path.stat().st_size
    assert size > 2_400_000
    del rows
    tracemalloc.start()
    try:
        found = load_dataset(str(path))
        assert sum(len(row["output"]) for row in found) == 3000 * 720
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < (1.4 if name == "rows.parquet" else 0.3) * size  # Arrow's own memory is not traced


def test_one_row_of_a_table_that_cannot_be_read_is_named_alone(tmp_path, monkeypatch):
    table = pyarrow.Table.from_pylist([{"text": str(number)} for number in range(600)])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    whole = row_files._plain

    def refusing(value, of_type):
        if value == "300":
            raise OverflowError("date value out of range")
        return whole(value, of_type)

    monkeypatch.setattr(row_files, "_plain", refusing)
    rows = load_dataset(str(tmp_path / "rows.parquet"))
    assert [rows[index]["text"] for index in (299, 301, 599)] == ["299", "301", "599"]
    with pytest.raises(RowError, match="cannot be read: date value out of range"):
        rows[300]
