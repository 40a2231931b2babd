"""What there is, as `distill-tune ls` lists it."""

import sys

import pytest

from distill_tune.cli.main import main
from distill_tune.config.files import config_names, recipe_names


@pytest.mark.parametrize("width", [None, 60, 80, 132])
def test_titles_are_whole_sentences_and_no_wider_than_a_terminal(capsys, monkeypatch, width):
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    main(["ls"])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    assert width is None or max(map(len, shown)) <= max(width, 39 + 30)
    titles: dict[str, str] = {}
    for line in shown:
        if name := line[2:38].strip():
            titles[name] = ""
        titles[name or list(titles)[-1]] += f" {line[39:]}"
    assert list(titles) == [*recipe_names(), *config_names()]
    assert all(title.count(". ") == 0 and title.endswith(".") for title in titles.values())
    assert titles["generate/teacher_answers"] == (
        " Two steps: the teacher writes its own answers to the rows' questions, and the student learns these from it "
        "(sequence-level distillation)."
    )
