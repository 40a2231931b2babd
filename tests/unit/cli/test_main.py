"""The command before any of its commands: how it is begun, and what is none of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from distill_tune.cli.main import main
from distill_tune.config.files import find_config, find_recipe, recipe_names

# What Ctrl-C does while a module is imported.
INTERRUPTED = """
import importlib, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = {arguments!r}
module, _, function = {entry!r}.partition(":")
sys.exit(getattr(importlib.import_module(module), function)())
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("distill_tune.cli.main", ["ls"]), ("omegaconf", ["ls"]), ("torch", ["validate", "--config", "tiny"])],
)
def test_ctrl_c_ends_it_without_a_traceback_from_its_first_moment(module, arguments):
    pyproject = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    entry = re.search(r'^distill-tune = "(.*)"$', pyproject, re.MULTILINE)[1]
    script = INTERRUPTED.format(module=module, arguments=arguments, entry=entry)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stderr in ("", "distill-tune: interrupted\n")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("generate", "run generate --config teacher_answers"),
        ("train", "run kd_single_device --config tiny"),
        ("distill", "run kd_single_device --config tiny"),
        ("kd", "run kd_single_device --config tiny"),
    ],
)
def test_what_other_tools_have_as_a_command_is_told_with_the_line_that_does_it(capsys, given, line):
    with pytest.raises(SystemExit) as end:
        main([given])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"distill-tune: {given}: no such command; that is `distill-tune {line}`\n"
    _, recipe, _, config, *_ = line.split()
    assert find_recipe(recipe) and find_config(config)


def test_every_recipe_that_is_taken_for_a_command_is_told(capsys):
    for recipe in recipe_names():
        with pytest.raises(SystemExit):
            main([recipe, "--config", "tiny"])
        assert f"that is `distill-tune run {recipe} --config " in capsys.readouterr().err


def test_a_misspelt_command_is_told_with_its_near_miss(capsys):
    for given, near in (("valdate", ", did you mean validate?"), ("pln", ", did you mean plan?"), ("zzz", ";")):
        with pytest.raises(SystemExit) as end:
            main([given, "--config", "tiny"])
        assert end.value.code == 2
        assert capsys.readouterr().err.startswith(f"distill-tune: {given}: no such command{near}")
