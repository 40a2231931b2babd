"""Paths on the command line and in the environment, where no shell has read ``~``."""

import argparse
from pathlib import Path

import pytest

from distill_tune.cache_folder import cache_folder
from distill_tune.cli import compare, cp, demo, download, init_student
from distill_tune.cli.main import main
from distill_tune.config.files import find_config, find_recipe


@pytest.mark.parametrize(
    ("command", "line", "names"),
    [
        (compare, ["compare", "~/a", "~/b", "--output=~/t.md"], {"output": "t.md"}),
        (init_student, ["init-student", "~/a", "~/b", "--every=2"], {"teacher": "a", "student": "b"}),
        (download, ["download", "x/y", "--output=~/a"], {"output": "a"}),
        (demo, ["demo", "--folder=~/a"], {"folder": "a"}),
        (cp, ["cp", "tiny", "~/a"], {"destination": "a"}),
    ],
)
def test_commands_read_the_home_folder(tmp_path, monkeypatch, command, line, names):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    options = parser.parse_args(line)
    for option, name in names.items():
        assert getattr(options, option) == tmp_path / name


def test_folders_to_compare_are_looked_for_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["compare", "~/a", "~/b"])
    assert f"{tmp_path}/a: no such folder" in capsys.readouterr().err


def test_recipes_configs_and_the_cache_lie_there_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.yaml", "a.py"):
        (tmp_path / name).touch()
    assert find_config("~/a.yaml") == tmp_path / "a.yaml"
    assert find_recipe("~/a.py") == tmp_path / "a.py"
    monkeypatch.setenv("DISTILL_TUNE_CACHE", "~/cache")
    assert cache_folder() == Path(tmp_path / "cache")
    monkeypatch.setenv("DISTILL_TUNE_CACHE", ".")
    assert cache_folder() == Path()
