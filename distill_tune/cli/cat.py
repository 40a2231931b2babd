"""`distill-tune cat`: print a config or a recipe."""

import argparse

from distill_tune.config.files import find_config


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("cat", help="print a config or a recipe", description="Print a config or a recipe.")
    parser.add_argument("name", help="as in `distill-tune ls`")
    parser.set_defaults(function=_cat)


def _cat(options: argparse.Namespace) -> None:
    print(find_config(options.name, or_recipe=True).read_text(encoding="utf-8"), end="")
