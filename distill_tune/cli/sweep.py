"""`distill-tune sweep`: the same run with other settings, compared by a held-out figure."""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from distill_tune.cli.run import torchrun_options
from distill_tune.cli.validate import read_arguments, require_training
from distill_tune.config.files import local_path
from distill_tune.config.recipe_keys import Recipe
from distill_tune.errors import UserError

if TYPE_CHECKING:
    from distill_tune.sweep.asked import AskedSweep

_DESCRIPTION = """Run a recipe with several values of some keys, and compare what comes out on held-out rows.

  distill-tune sweep kd_single_device --config mine.yaml kd_ratio=0.1,0.5,0.9 temperature=1,2
  distill-tune sweep kd_single_device --config mine.yaml optimizer.lr=1e-5..1e-3 kd_ratio=0.5,0.9 --random 10
  distill-tune sweep kd_single_device --config mine.yaml optimizer.lr=1e-5..1e-3 --search 20

A key with several values varies, and every combination is a trial; other overrides hold for all. A comma outside of
brackets, braces and quotes parts values: kd_loss='{...},{...}' has two, custom_sharded_layers=[output],[] too. A text
with a comma is quoted in YAML's way, once more than for the shell: 'key="a, b",c'. low..high is a range, for --random
and --search: on a log scale where an end is written with an exponent (1e-5..1e-3), of whole numbers where both ends
are (8..64), else evenly.

Each trial is an ordinary run in a folder below --folder and in a process of its own, then evaluated on the rows of
dataset_val, or without one of dataset_test: what ends one leaves the others. Every key is checked before the first
begins. Ctrl-C ends the trials under way with a checkpoint, and the same command goes on; with more values it runs what
is new. The best settings are run again with two other seeds, so that one sees what luck is worth.
"""
_REPEATED = 2


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sweep",
        help="run a recipe with several settings, and compare them",
        description=_DESCRIPTION,
        usage="distill-tune sweep [torchrun options] [RECIPE] --config CONFIG key=value,value ... [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--folder", type=local_path, help="of the trials (default: the config's output_dir and _sweep)")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument("--random", type=_whole, metavar="N", help="N random points, in place of every combination")
    ways.add_argument("--search", type=_whole, metavar="N", help="N points by Optuna, which ends early what is behind")
    parser.add_argument(
        "--objective",
        default="bits_per_byte",
        metavar="FIGURE",
        help="bits_per_byte (default), kl, val_ce_loss, val_kd_loss, val_loss, or one of the config's tasks",
    )
    parser.add_argument(
        "--repeat",
        type=functools.partial(_whole, least=0),
        metavar="K",
        default=_REPEATED,
        help=f"run the best K again with two other seeds (default: {_REPEATED})",
    )
    parser.add_argument("--devices", help="CUDA devices, as 0,1: each runs one trial at a time (default: one trial)")
    parser.add_argument("--plan", action="store_true", help="check all and tell what it takes, without running")
    parser.add_argument("--gpu", action="append", help="with --plan: of which card the hours are told")
    parser.set_defaults(function=lambda options: _sweep(*_parsed(parser, options.arguments)))


def _whole(text: str, least: int = 1) -> int:
    if not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least {least}")
    return int(text)


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The sweep's own options, and those of the run."""
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_known_args(arguments)


def _refuse(message: str) -> NoReturn:
    raise UserError(f"sweep: {message}")


def _sweep(options: argparse.Namespace, arguments: list[str]) -> None:
    from distill_tune.cli.checked_sweep import check, price
    from distill_tune.sweep.run import run_sweep

    if options.gpu and not options.plan:
        raise UserError(f"--gpu {options.gpu[0]}: goes with --plan, which tells a sweep's hours there")
    asked = _asked(options, arguments)
    check(asked, runs=not options.plan)
    print(asked.described, flush=True)
    if options.plan:
        price(asked, options.gpu)
    else:
        run_sweep(asked)


def _asked(options: argparse.Namespace, arguments: list[str]) -> "AskedSweep":
    """
    Raises:
        UserError: what is asked for is none, or trials could not be compared.
    """
    from distill_tune.sweep import values
    from distill_tune.sweep.asked import AskedSweep
    from distill_tune.sweep.folder import require_free

    recipe, name, overrides, num_processes = read_arguments(arguments)
    require_training("sweep", recipe)
    if recipe.stem == "teacher_cache":
        raise UserError("sweep teacher_cache: it trains nothing; name a recipe that does")
    shared, axes = values.read_axes(overrides)
    if not axes:
        raise UserError("sweep: no key has several values; name some, as kd_ratio=0.1,0.5,0.9")
    require_free([axis.key for axis in axes], shared)
    if options.random:
        points = values.random_points(axes, options.random)
    else:
        points = [] if options.search else values.grid(axes)
    return AskedSweep.of(
        recipe=recipe,
        launch=_launch(arguments),
        name=name,
        shared=shared,
        axes=axes,
        points=points,
        most_searched=options.search or 0,
        objective=options.objective,
        num_repeated=options.repeat,
        devices=_devices(options.devices, recipe),
        folder=options.folder,
        num_processes=num_processes,
    )


def _launch(arguments: list[str]) -> list[str]:
    """torchrun's options before the recipe."""
    if not arguments or not arguments[0].startswith("--") or arguments[0].startswith("--config"):
        return []
    after = torchrun_options(arguments).training_script_args
    return arguments[: len(arguments) - len(after) - 1]


def _devices(given: str | None, recipe: Path) -> list[str | None]:
    if given is None:
        return [None]
    devices = given.split(",")
    if not all(device.isdigit() for device in devices) or len(set(devices)) < len(devices):
        raise UserError(f"--devices {given}: must be different numbers with commas between them, as 0,1")
    if Recipe(recipe).is_distributed:
        raise UserError(f"--devices {given}: a trial of {recipe.stem} takes all that it sees (CUDA_VISIBLE_DEVICES)")
    return list(devices)
