"""`distill-tune ls`: the recipes and configs that there are."""

import argparse
import ast
import re
import shutil
import sys
import textwrap
from itertools import takewhile

from distill_tune.config.files import (
    config_names,
    configs_folder,
    find_config,
    recipe_names,
    recipes_folder,
)

_NAMES, _LEAST = 36, 30  # columns of names, and at least of what is beside them


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("ls", help="list recipes and configs", description="List recipes and configs.")
    parser.add_argument("--path", metavar="NAME", help="print only where this recipe (or config) lies")
    parser.set_defaults(function=_ls)


def _ls(options: argparse.Namespace) -> None:
    if options.path:
        print(find_config(options.path, or_recipe=True))
        return
    print(f"recipes ({recipes_folder()})")
    for name in recipe_names():
        source = (recipes_folder() / f"{name}.py").read_text(encoding="utf-8")
        print(_entry(name, ast.get_docstring(ast.parse(source)) or ""))
    print(f"configs ({configs_folder()})")
    for name in config_names():
        lines = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        print(_entry(name, "\n".join(line.removeprefix("#") for line in lines)))


def _entry(name: str, head: str) -> str:
    """A name, and beside it the first sentence of what is said of it; in a terminal no wider than that."""
    paragraph = " ".join(takewhile(bool, map(str.strip, head.splitlines())))
    (sentence, *_) = re.split(r"(?<=\.) (?=[A-Z])", paragraph)
    if not sys.stdout.isatty():
        return f"  {name:<{_NAMES}} {sentence}"
    width = max(_LEAST, shutil.get_terminal_size().columns - _NAMES - 3)
    indent = "\n" + " " * (_NAMES + 3)
    return f"  {name:<{_NAMES}} {indent.join(textwrap.wrap(sentence, width, break_on_hyphens=False))}"
