"""Paths on the command line and in the environment, where no shell has read ``~``."""

import argparse
from pathlib import Path

import pytest

from distill_tune.cache_folder import cache_folder
from distill_tune.cli import compare, cp, demo, download, init_student
from distill_tune.cli.main import main
from distill_tune.config.files import (
    demo_model_folder,
    find_config,
    find_recipe,
    is_model_folder,
    local_path,
    model_at,
    no_model_at,
)


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


def test_the_demos_models_have_a_name_on_the_command_line():
    assert [is_model_folder(local_path(f"demo:{name}")) for name in ("teacher", "student", "bpe_teacher")] == [True] * 3
    assert local_path("demo:teacher") == demo_model_folder("teacher") and local_path("demo:a") == Path("demo:a")


def test_folders_to_compare_are_looked_for_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit):
        main(["compare", "~/a", "~/b"])
    assert f"{tmp_path}/a: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("run", "is no model's folder; name run/model"),
        ("run/checkpoints", "is no model's folder; name run/model"),
        ("run/checkpoints/step_3", "is no model's folder; name run/model"),
        ("lora/checkpoints/step_3", "is no model's folder; name lora/adapter"),
        ("killed/checkpoints/step_3", "is of a run that has left no model yet; its own command with resume=auto goes"),
        ("killed", "is of a run that has left no model yet; its own command with resume=auto goes on with it, and dis"),
        ("begun", "is of a run that has left neither a model nor a checkpoint yet; its own command begins it anew"),
        ("cache", "is a cache of a teacher, which holds no model; name a model's folder"),
        ("answers", "holds answers, which generate wrote, and no model; name a model's folder"),
        (
            "demo:techer",
            "no such model travels with the package; there are demo:bpe_teacher, demo:student, demo:teacher",
        ),
        ("run/checkpoint", "no such folder, or it has no config.json; name a Hugging Face model folder"),
    ],
)
def test_a_folder_that_is_no_models_is_told_for_what_it_is(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    for run in ("run", "lora", "killed"):
        (tmp_path / run / "checkpoints" / "step_3").mkdir(parents=True)
    files = (
        "begun/config.yaml",
        "run/model/config.json",
        "lora/adapter/adapter_config.json",
        "cache/manifest.json",
        "answers/generation.json",
    )
    for file in map(tmp_path.joinpath, files):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert no_model_at(name).startswith(told)


def test_of_a_runs_folder_the_student_is_meant_that_it_has_left(tmp_path):
    for name in ("both/model", "both/adapter", "lora/adapter", "whole"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").touch()
    meant = {"both": "both/model", "lora": "lora/adapter", "whole": "whole", "both/adapter": "both/adapter"}
    assert {name: model_at(tmp_path / name) for name in meant} == {name: tmp_path / at for name, at in meant.items()}
    assert model_at(tmp_path / "both", ["adapter"]) == tmp_path / "both" / "adapter"
    assert model_at(tmp_path / "nothing") == tmp_path / "nothing"


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
