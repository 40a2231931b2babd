"""Folders of rows: which files a split has, as the datasets library tells them, and what is told of the rest."""

import json
import os

import datasets
import pytest

from distill_tune.data.sources import load_dataset
from distill_tune.errors import UserError


def folder(path, *names: str):
    """A folder with these files, each of which has one row: its own name."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        content = [{"text": name}] if name.endswith(".json") else {"text": name}
        (path / name).write_text(json.dumps(content))
    return path


def read(path, **options) -> list[str]:
    return [row["text"] for row in load_dataset(str(path), **options)]


LAYOUTS = {
    "names": ["train.jsonl", "validation.jsonl", "test.jsonl"],
    "parts of names": ["my_train_1.jsonl", "my-train-2.jsonl", "dev.jsonl", "other.eval.jsonl"],
    "folders": ["train/a.jsonl", "train/b/c.jsonl", "val/a.jsonl", "testing/a.jsonl"],
    "shards": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/test-00000-of-00001.jsonl"],
    "shards of any name": ["data/train_sft-00000-of-00001.jsonl", "data/gen-00000-of-00001.jsonl"],
    "one split": ["b.jsonl", "a.jsonl", "sub/contest.jsonl", "trainer.jsonl", ".hidden/test.jsonl", ".test.jsonl"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_those_of_the_datasets_library(tmp_path, layout, capsys):
    path = folder(tmp_path / "a[1]", *LAYOUTS[layout])
    plain = folder(tmp_path / "rows", *LAYOUTS[layout])  # the library takes brackets for a pattern
    theirs = datasets.load_dataset(str(plain), cache_dir=str(tmp_path / "cache"))
    for split, rows in theirs.items():
        assert sorted(read(path, split=split)) == sorted(rows["text"])
        others = " and ".join(other for other in theirs if other != split)
        told = f"dataset {path}: split {split} alone is read; there is {others}, too\n" if others else ""
        assert capsys.readouterr().out == told


def test_every_file_is_read_or_named(tmp_path, capsys):
    names = ["a.jsonl", "c.JSONL", "sub/d.json", "sub/deep/e.ndjson"]
    path = folder(tmp_path / "rows", *names, "notes.txt", "sub/old.zip", "README.md", "LICENSE", ".cache/x.jsonl")
    os.symlink(tmp_path, path / "elsewhere")
    assert read(path) == names
    assert capsys.readouterr().out == f"dataset {path}: left out: elsewhere/ (a link), notes.txt, sub/old.zip\n"
    path = folder(tmp_path / "splits", "train.jsonl", "Test.jsonl", "more.jsonl", *(f"{n}.log" for n in range(6)))
    assert read(path) == ["train.jsonl"]
    assert capsys.readouterr().out == (
        f"dataset {path}: split train alone is read; there is test, too; "
        "left out: 0.log, 1.log, 2.log, 3.log, 4.log and 2 more\n"
    )


def test_a_split_that_is_not_there_names_those_that_are(tmp_path):
    path = folder(tmp_path, "test.jsonl", "validation.jsonl", "more.jsonl")
    told = r"dataset split=train: there is validation and test; left out: more\.jsonl; a part of a split is written"
    with pytest.raises(UserError, match=told):
        read(path)
    assert read(path, split="test+validation") == ["test.jsonl", "validation.jsonl"]
    with pytest.raises(UserError, match=r"dataset split=test\[:x\]: Unrecognized instruction format"):
        read(path, split="test[:x]")
    (tmp_path / "none").mkdir()
    folder(tmp_path / "none", "a.txt")
    with pytest.raises(UserError, match=r"none: the folder has no \.json, .*\.arrow file; it has a\.txt"):
        read(tmp_path / "none")


def test_saved_datasets_are_read_with_their_splits(tmp_path, capsys):
    made = {name: datasets.Dataset.from_list([{"text": name}, {"text": "b"}]) for name in ("train_sft", "gen")}
    datasets.DatasetDict(made).save_to_disk(tmp_path / "dict")
    assert read(tmp_path / "dict", split="gen[:1]") == ["gen"]
    assert capsys.readouterr().out.endswith("split gen alone is read; there is train_sft, too\n")
    rows = load_dataset(str(tmp_path / "dict"), split="train_sft")
    assert rows.origin(1) == (str(tmp_path / "dict" / "train_sft"), 2)
    made["gen"].save_to_disk(tmp_path / "both" / "train")
    made["train_sft"].save_to_disk(tmp_path / "both" / "test")
    assert read(folder(tmp_path / "both", "train/more.jsonl")) == ["gen", "b"]  # a saved dataset is a whole


def test_the_configurations_of_a_readme_are_heeded(tmp_path, capsys):
    path = folder(tmp_path, "main/train.jsonl", "main/test.jsonl", "hard/a.jsonl", "hard/b.jsonl")
    configs = """configs:
- config_name: main
  data_files: [{split: train, path: main/train*}, {split: test, path: main/test.jsonl}]
- config_name: hard
  data_dir: hard
"""
    (path / "README.md").write_text(f"---\n{configs}---\n# Rows\n")
    with pytest.raises(UserError, match=r"has main, hard; choose one with dataset\.name"):
        read(path)
    assert read(path, name="hard") == ["hard/a.jsonl", "hard/b.jsonl"]
    assert read(path, name="main") == ["main/train.jsonl"]
    assert capsys.readouterr().out.endswith("there is test, too; left out: hard/a.jsonl, hard/b.jsonl\n")
    with pytest.raises(UserError, match=r"dataset\.name=easy: .* has main, hard"):
        read(path, name="easy")
    (path / "README.md").write_text(f"---\n{configs}  default: true\n---\n")
    assert read(path) == ["hard/a.jsonl", "hard/b.jsonl"]
    (path / "README.md").write_text("---\nconfigs: [3\n---\n")
    with pytest.raises(UserError, match=r"README\.md: its header cannot be read"):
        read(path)


def test_files_may_be_named_by_pattern_and_split(tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path, "a/1.jsonl", "a/2.jsonl", "b/3.jsonl", "test.jsonl"))
    assert read("json", data_files="a/*.jsonl") == ["a/1.jsonl", "a/2.jsonl"]
    assert read("json", data_files=["b/3.jsonl", "**/2.jsonl"]) == ["b/3.jsonl", "a/2.jsonl"]
    both = {"train": "b/*", "test": ["test.jsonl"]}
    assert read("json", data_files=both) == ["b/3.jsonl"]
    assert read("json", data_files=both, split="test") == ["test.jsonl"]
    assert read(".", data_files=both, split="test") == ["test.jsonl"]
    assert (
        read(".", data_dir="a")
        == read("json", data_dir="a")
        == read("json", data_files="a")
        == ["a/1.jsonl", "a/2.jsonl"]
    )
    assert read("json", data_dir="a", data_files="2.jsonl") == ["a/2.jsonl"]
    with pytest.raises(UserError, match=r"split train: there is no c/\* to read"):
        read(".", data_files="c/*")
    with pytest.raises(UserError, match=r"c/\*: no such file or folder"):
        read("json", data_files="c/*")
