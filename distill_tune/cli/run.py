"""`distill-tune run`: a recipe with a config."""

import argparse
import os
import runpy
import sys

from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe
from distill_tune.errors import UserError

_DESCRIPTION = """Run a recipe with a config.

  distill-tune run RECIPE --config CONFIG [overrides]

RECIPE is a name (`distill-tune ls`) or a file of yours; CONFIG a name, a bare name where it is unique, or a file.

Overrides change the config for this run; values are YAML:
  kd_ratio=0.1                               set a key
  model.lora_rank=16                         set an argument of a component
  dataset=torchtune.datasets.alpaca_dataset  replace a component
  +model.lora_dropout=0.1                    add what the config does not have
  ~lr_scheduler                              remove a key
A key that nothing reads is an error, found before anything loads.

torchrun's own options go before the recipe and start it under torchrun:
  distill-tune run --nproc_per_node 2 my_recipe.py --config CONFIG
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "run",
        help="run a recipe with a config",
        description=_DESCRIPTION,
        usage="distill-tune run [torchrun options] RECIPE --config CONFIG [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace) -> None:
    arguments = options.arguments
    if not arguments:
        raise UserError("run: name a recipe and a config: distill-tune run kd_single_device --config tiny")
    if arguments[0].startswith("-"):
        _run_under_torchrun(arguments)
        return
    recipe = find_recipe(arguments[0])
    config, overrides = parse_config(arguments[1:])
    checked_config(recipe, config, overrides)  # before the recipe imports anything heavy
    sys.argv = [str(recipe), "--config", config, *overrides]
    sys.path.insert(0, str(recipe.resolve().parent))
    sys.path.insert(1, os.getcwd())  # a user's own components
    runpy.run_path(str(recipe), run_name="__main__")


def parse_config(arguments: list[str]) -> tuple[str, list[str]]:
    """``--config NAME`` and the overrides, in any order.

    Raises:
        UserError: no config, or an option that there is not.
    """
    config, overrides = None, []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            config = next(rest, None)
        elif argument.startswith("--config="):
            config = argument.removeprefix("--config=")
        elif argument.startswith("-"):
            raise UserError(
                f"{argument}: no such option; settings are written key=value, torchrun's options go before the recipe"
            )
        else:
            overrides.append(argument)
    if not config:
        raise UserError("--config: missing; name a config, `distill-tune ls` lists them")
    return config, overrides


def _run_under_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import get_args_parser
    from torch.distributed.run import run as torchrun

    options = get_args_parser().parse_args(arguments)
    recipe = find_recipe(options.training_script)
    config, overrides = parse_config(options.training_script_args)
    checked_config(recipe, config, overrides)
    options.training_script = str(recipe)
    torchrun(options)
