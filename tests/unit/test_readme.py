"""README_zh.md is README.md in Chinese: the same sections, commands, figures and names; and commands that there are."""

import re
from pathlib import Path

import pytest

from distill_tune.cli import main as command_line

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md"))


def commands(text: str) -> list[str]:
    """The indented lines without what is told beside them."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    return [re.split(r"\s{2,}", line)[0] for line in lines]


def tables(text: str) -> list[list[str]]:
    """Of each row of a table the figures and the names in code."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.findall(r"`[^`]+`|-?\d[\d,.]*", row) for row in rows]


def names(text: str) -> set[str]:
    """What stands in code between other words."""
    return set(re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", text)))


def test_both_readmes_have_the_same_sections_and_commands():
    assert [line.count("#") for line in ENGLISH.splitlines() if line.startswith("#")] == [
        line.count("#") for line in CHINESE.splitlines() if line.startswith("#")
    ]
    assert commands(CHINESE) == commands(ENGLISH)


def test_both_readmes_have_the_same_tables_and_names():
    assert CHINESE.count("\n|") == ENGLISH.count("\n|")
    assert tables(CHINESE) == tables(ENGLISH)
    assert names(CHINESE) == names(ENGLISH)


def test_the_readme_shows_every_command_there_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command_line.main(["--help"])
    there_are = re.findall(r"^    (\S+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert len(there_are) > 8
    shown = set(re.findall(r"^distill-tune ([a-z-]+)", "\n".join([*commands(ENGLISH), *names(ENGLISH)]), re.MULTILINE))
    assert shown == set(there_are) - {"cat"}


def test_both_readmes_name_every_page_of_the_docs():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    for text in (ENGLISH, CHINESE):
        assert pages <= set(re.findall(r"[a-z_]+\.md", text.strip().rpartition("\n\n")[2]))
