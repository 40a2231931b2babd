import gc
import os
import sysconfig
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill_tune import config, data
from distill_tune.data import docstring_rows

SOURCE = '''
def area(width: int, height: int = 1) -> int:
    """The area of a rectangle
    whose sides are given.

    Args:
        width: left to right
    """

class Box:
    """A thing with six sides and, perhaps, something inside.

    More about it.
    """
    def _hidden(self):
        """Not shown, for its name begins with an underscore."""

def short():
    """Too short."""
'''


def test_rows_are_questions_with_the_descriptions_as_answers(tmp_path: Path):
    (tmp_path / "shapes.py").write_text(SOURCE)
    assert list(docstring_rows.rows_of_module("shapes", tmp_path / "shapes.py")) == [
        {
            "instruction": "What does the function shapes.area(width: int, height: int=1) do?",
            "output": "The area of a rectangle whose sides are given.",
            "module": "shapes",
        },
        {
            "instruction": "What is the class shapes.Box?",
            "output": "A thing with six sides and, perhaps, something inside. More about it.",
            "module": "shapes",
        },
    ]


def test_no_module_is_on_both_sides_and_the_split_is_fixed():
    train = docstring_rows.collect(500, held_out=False)
    held_out = docstring_rows.collect(100, held_out=True)
    assert len(train) == 500
    assert not {row["module"] for row in train} & {row["module"] for row in held_out}
    # By sha256 of the name, so the same everywhere: the first byte of json's is 0x02, of textwrap's 0x9b.
    assert docstring_rows.is_held_out("json")
    assert not docstring_rows.is_held_out("textwrap")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for all installed code, with the module shapes."""
    folder = tmp_path / "installed"
    folder.mkdir()
    (folder / "shapes.py").write_text(SOURCE)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: dict.fromkeys(["stdlib", "purelib", "platlib"], str(folder)))
    return folder


def test_modules_are_named_by_where_they_lie(installed: Path):
    for name in ("a/__init__.py", "a/b.py", "a/tests/c.py", "a/not-a-name/d.py", "a/test.py", "a/b.txt", "e/f.py"):
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).write_text("")
    assert sorted(docstring_rows._modules(())) == [
        ("a", str(installed / "a/__init__.py")),
        ("a.b", str(installed / "a/b.py")),
        ("e.f", str(installed / "e/f.py")),
        ("shapes", str(installed / "shapes.py")),
    ]


def test_source_files_are_read_once_as_long_as_none_changes(
    installed: Path, tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "cache"))
    tokenizer_config = OmegaConf.create(
        {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file), "max_seq_len": 256}
    )
    tokenizer = config.instantiate(tokenizer_config)
    component = OmegaConf.create(
        {"_component_": "distill_tune.data.docstrings", "held_out": docstring_rows.is_held_out("shapes")}
    )
    read, rows_of_module = [], docstring_rows.rows_of_module
    monkeypatch.setattr(docstring_rows, "rows_of_module", lambda *where: read.append(where) or rows_of_module(*where))

    first, _ = data.prepare_rows(component, tokenizer, tokenizer_config)
    assert len(first[0]) == 2 and len(read) == 1
    again, _ = data.prepare_rows(component, tokenizer, tokenizer_config)
    assert again[0].fingerprint == first[0].fingerprint and len(read) == 1
    fewer, _ = data.prepare_rows(OmegaConf.merge(component, {"num_rows": 1}), tokenizer, tokenizer_config)
    assert len(fewer[0]) == 1 and len(read) == 2

    source = installed / "shapes.py"
    found = source.stat()
    source.write_text(SOURCE.replace("rectangle", "RECTANGLE"))  # as many characters
    os.utime(source, ns=(found.st_atime_ns, found.st_mtime_ns + 1_000_000))
    changed, _ = data.prepare_rows(component, tokenizer, tokenizer_config)
    assert changed[0].fingerprint != first[0].fingerprint and len(read) == 3


def test_reading_source_files_has_no_collection_go_through_all_other_objects(installed: Path):
    for number in range(40):
        (installed / f"shapes_{number}.py").write_text(SOURCE * 5)
    begun: list[str] = []
    gc.callbacks.append(note := lambda phase, info: begun.append(phase))
    try:
        for held_out in (True, False):
            docstring_rows.collect(held_out=held_out)
        assert gc.isenabled() and not begun
    finally:
        gc.callbacks.remove(note)
