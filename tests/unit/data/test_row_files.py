"""Rows out of files of every format, packed or not, and parts of them."""

import bz2
import gzip
import json
import lzma

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from distill_tune.data.sources import RowError, load_dataset
from distill_tune.errors import UserError

ROWS = [{"instruction": f"What is {n}?", "output": f"{n}\u2028is {n}, 真的。"} for n in range(7)]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
TABLE = pyarrow.Table.from_pylist(ROWS)


def parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(TABLE, sink)
    return sink.getvalue().to_pybytes()


def arrow(new) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with new(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return sink.getvalue().to_pybytes()


def csv(delimiter: str) -> bytes:
    lines = [["instruction", "output"], *([row["instruction"], row["output"]] for row in ROWS)]
    return "".join(delimiter.join(f'"{cell}"' for cell in line) + "\r\n" for line in lines).encode()


FILES = {
    "a.json": json.dumps(ROWS).encode(),
    "lines.json": LINES,
    "a.jsonl": LINES,
    "A.JSONL": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
    "a.csv": csv(","),
    "a.tsv": csv("\t"),
    "a.parquet": parquet(),
    "stream.arrow": arrow(pyarrow.ipc.new_stream),
    "file.arrow": arrow(pyarrow.ipc.new_file),
    "a.jsonl.gz": gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]),
    "a.json.zst": pyarrow.compress(LINES, "zstd", asbytes=True),
    "a.csv.xz": lzma.compress(csv(",")),
    "A.JSONL.BZ2": bz2.compress(LINES),
    "a.parquet.gz": gzip.compress(parquet()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows_and_parts_of_them(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FILES[name])
    assert list(load_dataset(str(path))) == ROWS
    parts = [list(load_dataset(str(path), split=split)) for split in ("train[:90%]", "train[90%:]")]
    assert (len(parts[0]), parts[0] + parts[1]) == (6, ROWS)
    assert list(load_dataset(str(path), split="train[5:]+train[:1]")) == [*ROWS[5:], ROWS[0]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", FILES["a.jsonl.gz"][:-9], "cannot be unpacked: Truncated compressed stream"),
        ("a.jsonl.zst", b"nothing", "cannot be unpacked: ZSTD decompress failed"),
        ("a.jsonl.xz", lzma.compress(LINES)[:-9], "cannot be unpacked: Compressed data ended"),
        ("a.arrow", b"nothing", "not an Arrow file"),
        ("a.zip", b"PK", "cannot be read; known are .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow, .txt, each"),
        ("rows.gz", b"", "cannot be read; known are .json"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(load_dataset(str(tmp_path / name)))
    assert f"{name}: {message}" in str(caught.value)


def test_an_empty_file_is_one_among_others_and_alone_it_is_named(tmp_path):
    (tmp_path / "0.jsonl").touch()
    (tmp_path / "1.jsonl").write_bytes(LINES)
    assert list(load_dataset("json", data_files=[str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")])) == ROWS
    with pytest.raises(UserError, match=r"^dataset .*/0\.jsonl: is empty: there is no row to read$"):
        len(load_dataset(str(tmp_path / "0.jsonl")))
    (tmp_path / "1.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"/0\.jsonl, .*/1\.jsonl: are empty: there is no row"):
        len(load_dataset("json", data_files=[str(tmp_path / "0.jsonl"), str(tmp_path / "1.jsonl")]))


def test_a_row_is_found_by_its_line_also_in_packed_lines(tmp_path):
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": \n'))
    rows = load_dataset(str(tmp_path / "a.json.gz"))
    assert rows.origin(1) == (str(tmp_path / "a.json.gz"), 3)
    with pytest.raises(RowError, match="broken JSON at column 7"):
        rows[1]


@pytest.mark.parametrize("mixed", [True, False])
def test_tables_give_what_a_row_has_and_not_what_arrow_fills_in(tmp_path, mixed):
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": "s"}}]
    rows = [
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "tool_calls": [call]}]} for call in calls
    ]
    options = {"on_mixed_types": "use_json"} if mixed else {}
    made = datasets.Dataset.from_dict({"messages": [row["messages"] for row in rows]}, **options)
    made.save_to_disk(tmp_path / "saved")
    pyarrow.parquet.write_table(made.with_format("arrow")[:], tmp_path / "rows.parquet")
    assert list(load_dataset(str(tmp_path / "saved"))) == rows
    assert list(load_dataset(str(tmp_path / "rows.parquet"))) == rows


def test_the_fingerprint_follows_every_file_that_is_read(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "data" / "saved")
    (tmp_path / "data" / "a.jsonl").write_bytes(LINES)
    (tmp_path / "data" / "test.md").write_bytes(LINES)
    seen = [load_dataset(str(tmp_path / "data")).fingerprint]
    for name in ("a.jsonl", "saved/state.json", "test.md"):
        path = tmp_path / "data" / name
        path.write_bytes(path.read_bytes() + b"\n")
        seen.append(load_dataset(str(tmp_path / "data")).fingerprint)
    assert len(set(seen)) == 3
    assert seen[2] == seen[3]
    assert load_dataset(str(tmp_path / "data"), split="train[:3]").fingerprint not in seen
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "a.csv")
    assert load_dataset(str(tmp_path / "data")).fingerprint not in seen


def test_a_saved_folder_that_is_not_whole_is_named(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match="saved: not as save_to_disk writes a folder"):
        list(load_dataset(str(tmp_path / "saved")))


@pytest.mark.parametrize("encoding", ["gbk", "utf-16", "latin-1"])
def test_the_encoding_that_is_offered_reads_the_file(tmp_path, encoding):
    rows = [{"text": "Gr\u00fc\u00dfe" if encoding == "latin-1" else "\u4f60\u597d"}]
    (tmp_path / "a.jsonl").write_bytes(json.dumps(rows[0], ensure_ascii=False).encode(encoding))
    with pytest.raises(UserError, match=f"or name its encoding, such as dataset.encoding={encoding}"):
        list(load_dataset(str(tmp_path / "a.jsonl")))
    assert list(load_dataset(str(tmp_path / "a.jsonl"), encoding=encoding)) == rows


def test_what_would_be_read_otherwise_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(csv(";"))
    assert list(load_dataset(str(tmp_path / "a.csv"), delimiter=";", token="secret", num_proc=2)) == ROWS
    with pytest.raises(UserError, match=r"dataset\.sep: local files heed field, delimiter, encoding alone"):
        load_dataset(str(tmp_path / "a.csv"), sep=";")
    with pytest.raises(UserError, match=r"a\.csv: is no folder; data_files and data_dir are for those"):
        load_dataset(str(tmp_path / "a.csv"), data_files="b.csv")


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("rows.json", {"data": ROWS}, "its fields are data"),
        ("rows.json", ROWS, "it is a list"),
        ("rows.jsonl", {"train": ROWS}, "leave it out"),
    ],
)
def test_a_field_that_a_file_has_not_is_told(tmp_path, name, content, found):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"dataset\.field=train: .*{name} is no JSON object.*{found}"):
        list(load_dataset(str(tmp_path / name), field="train"))


DIGITS = "1" * 5000  # more than Python reads as a number


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.json", '[{"n": ' + DIGITS + "}]", {}, "cannot be read: Exceeds the limit"),
        ("a.json", '[{"text": "a"}]', {"encoding": "utf-16"}, "not utf-16"),
        ("a.csv", "a,b", {"delimiter": ";;"}, "dataset.delimiter=;;: must be one character"),
        ("a.csv", "a,b,a", {}, "has the column a 2 times; rename it"),
    ],
)
def test_what_cannot_be_read_is_a_line(tmp_path, name, content, options, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as told:
        list(load_dataset(str(tmp_path / name), **options))
    assert message in str(told.value)


def test_a_number_that_is_too_long_is_a_fault_of_its_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": ' + DIGITS + '}\n{"n": 1}\n')
    rows = load_dataset(str(tmp_path / "a.jsonl"))
    with pytest.raises(RowError, match="cannot be read: Exceeds the limit"):
        rows[0]
    assert rows[1] == {"n": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b", "tags": ["c"]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
)
def test_a_json_file_of_one_line_is_one_row(tmp_path, row):
    (tmp_path / "rows.json").write_text(json.dumps(row))
    assert list(load_dataset(str(tmp_path / "rows.json"))) == [row]
    assert datasets.load_dataset("json", data_files=str(tmp_path / "rows.json"), split="train").num_rows == 1
