"""`distill-tune ls`: the recipes and configs that there are."""

import argparse
import ast

from distill_tune.config.files import (
    config_names,
    configs_folder,
    find_config,
    recipe_names,
    recipes_folder,
)


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
        print(f"  {name:<36} {(ast.get_docstring(ast.parse(source)) or '').splitlines()[0]}")
    print(f"configs ({configs_folder()})")
    for name in config_names():
        first = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        print(f"  {name:<36} {first.removeprefix('#').strip()}")
