"""`distill-tune run`: a recipe with a config, in one process or under torchrun."""

import argparse
import logging
import os
import runpy
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from distill_tune.cli.keys_page import help_text
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe, folders_of_own_modules
from distill_tune.config.nearest import did_you_mean
from distill_tune.config.recipe_keys import Recipe
from distill_tune.counts import counted
from distill_tune.errors import UserError
from distill_tune.launch import is_heeded, is_launched, stop_with_sweep
from distill_tune.threads import set_threads

_DESCRIPTION = """Run a recipe with a config.

  distill-tune run [torchrun options] RECIPE --config CONFIG [overrides]

RECIPE is a name (`distill-tune ls`) or a file of yours; CONFIG a name, a bare name where it is unique, or a file.

Overrides change the config for this run; values are YAML:
  kd_ratio=0.1                               set a key
  model.lora_rank=16                         set an argument of a component
  dataset=torchtune.datasets.alpaca_dataset  replace a component
  +model.lora_dropout=0.1                    add what the config does not have
  ~lr_scheduler                              remove a key
A key that a shipped recipe does not read is an error, found before anything loads. A recipe of yours may read others:
what is almost a known key is an error there, too, and what it does not name is told.

A distributed recipe gets one process for each GPU of this machine. torchrun's options say it otherwise:
  distill-tune run --nproc_per_node 2 kd_distributed --config CONFIG
  distill-tune run --nnodes 2 --nproc_per_node 8 --rdzv_endpoint HOST:29500 kd_distributed --config CONFIG
The second line is given on both machines. Under torchrun or srun the processes that are there are taken.
"""

_KEYS = """
Keys, with their defaults, what they say and may be (docs/keys.md):
"""
_SECONDS_TO_STOP = 600


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "run",
        help="run a recipe with a config",
        description=_DESCRIPTION + _KEYS + help_text(),
        usage="distill-tune run [torchrun options] RECIPE --config CONFIG [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_run)


def _run(options: argparse.Namespace) -> None:
    stop_with_sweep()
    arguments = options.arguments
    if not arguments:
        raise UserError("run: name a recipe and a config: distill-tune run kd_single_device --config tiny")
    if arguments[0].startswith("--config"):
        raise UserError("run: the recipe comes first: distill-tune run kd_single_device --config tiny")
    if arguments[0].startswith("-"):
        _run_under_torchrun(arguments)
        return
    recipe = find_recipe(arguments[0])
    config, overrides = parse_config(arguments[1:])
    if not is_launched():  # a rank's was checked by what launched it
        checked_config(recipe, config, overrides)  # before the recipe imports anything heavy
    if not is_launched() and Recipe(recipe).is_distributed:
        count = _num_gpus()
        what = f"one process for each of {counted(count, 'GPU')}" if count else "no GPU here, so one process"
        print(f"{recipe.stem}: {what} (--nproc_per_node N before the recipe says it otherwise)", flush=True)
        _launch(torchrun_options(["--nproc_per_node", str(count or 1), *arguments]), recipe, config, overrides)
        return
    set_threads(1)
    sys.argv = [str(recipe), "--config", config, *overrides]
    sys.path[:0] = folders_of_own_modules(recipe)
    runpy.run_path(str(recipe), run_name="__main__")


def parse_config(arguments: list[str]) -> tuple[str, list[str]]:
    """``--config NAME`` and the overrides, in any order.

    Raises:
        UserError: no config, an option that there is not, or an override without its quotes.
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
        meant = [f"--config {word}" for word in overrides if "=" not in word and word[0] not in "+~"]
        raise UserError(f"--config: missing{did_you_mean(meant, '; name a config, `distill-tune ls` lists them')}")
    _require_whole(overrides)
    return config, overrides


def _require_whole(overrides: Sequence[str]) -> None:
    """
    Raises:
        UserError: a mapping or list came in several words, for lack of quotes.
    """
    for start, override in enumerate(overrides):
        for end in range(start + 2, len(overrides) + 1) if _is_open(override) else ():
            if not _is_open(whole := " ".join(overrides[start:end])):
                told = f"quote it, since a shell parts words at blanks: {shlex.quote(whole)}"
                raise UserError(f"{override} {overrides[start + 1]} ...: {told}")


def _is_open(text: str) -> bool:
    return sum(map(text.count, "{[")) > sum(map(text.count, "}]"))


def torchrun_options(arguments: list[str]) -> Any:
    """torchrun's options as it reads them itself, from a line that begins with them.

    Raises:
        UserError: an option that torchrun has not, or no recipe after them.
    """
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False
    parser.error = _refuse  # type: ignore[method-assign]
    options = parser.parse_args(arguments)
    if str(options.nproc_per_node).lstrip("-").isdigit() and int(options.nproc_per_node) < 1:
        raise UserError(f"--nproc_per_node {options.nproc_per_node}: must be at least 1, or gpu, cpu or auto")
    given = {argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in arguments}
    if not given & {"nnodes", "rdzv_backend", "rdzv_endpoint", "master_addr", "master_port", "standalone"}:
        options.standalone = True  # a port of its own, so that two runs on a machine do not meet
    elif "rdzv_endpoint" in given and "rdzv_backend" not in given:
        options.rdzv_backend = "c10d"
    return options


def num_processes_asked(options: Any) -> int:
    """How many processes torchrun's options start on all machines together."""
    nodes, each = str(options.nnodes).rpartition(":")[2], str(options.nproc_per_node)
    return int(nodes) * (int(each) if each.isdigit() else max(1, _num_gpus()))


def _run_under_torchrun(arguments: list[str]) -> None:
    options = torchrun_options(arguments)
    recipe = find_recipe(options.training_script)
    config, overrides = parse_config(options.training_script_args)
    checked_config(recipe, config, overrides)
    if not Recipe(recipe).is_distributed and str(options.nproc_per_node) != "1":
        raise UserError(
            f"{recipe.stem} runs on one device; take kd_distributed, which runs its configs on several, "
            "or leave out --nproc_per_node"
        )
    _launch(options, recipe, config, overrides)


def _launch(options: Any, recipe: Path, config: str, overrides: list[str]) -> None:
    """Run a checked config under torchrun, and end as its first failing process did."""
    from torch.distributed import DistNetworkError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import determine_local_world_size
    from torch.distributed.run import run as torchrun

    # By this command again: a rank that is interrupted while it imports PyTorch ends as a lone process does.
    options.module, options.training_script = True, "distill_tune"
    options.training_script_args = ["run", str(recipe), "--config", config, *overrides]
    try:
        set_threads(determine_local_world_size(options.nproc_per_node))  # torchrun would give each one, with a warning
    except ValueError as error:
        raise UserError(f"run: --nproc_per_node {options.nproc_per_node}: {error}") from error
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
    for name in ("", ".agent.server.api"):  # the rank that failed or was stopped has told why
        logging.getLogger(f"torch.distributed.elastic{name}").setLevel(logging.CRITICAL)
    # Told to stop, the ranks finish their step and write a checkpoint; torchrun would kill them after 30 s.
    if hasattr(options, "signals_to_handle"):
        hangup = "SIGHUP," if is_heeded(signal.SIGHUP) else ""
        options.signals_to_handle = f"SIGTERM,SIGINT,{hangup}SIGQUIT,SIGUSR1,SIGUSR2"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SECONDS_TO_STOP))
    for name in ("SIGUSR1", "SIGUSR2"):  # a torchrun without that option takes them for SIGTERM
        signal.signal(signal.Signals[name], lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    _require_free_port(options)
    try:
        torchrun(options)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except (DistNetworkError, RendezvousError) as error:
        raise UserError(f"run: the processes cannot meet: {str(error).splitlines()[0]}") from error
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"distill-tune: rank {rank} was ended by {name}; the others were stopped", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 1)


def _require_free_port(options: Any) -> None:
    """On one machine nobody else keeps the port; of several the first to come does.

    Raises:
        UserError: another program has it.
    """
    if options.standalone or str(options.nnodes).rpartition(":")[2] != "1":
        return
    port = str(options.rdzv_endpoint).rpartition(":")[2] or str(options.master_port or "")
    if not port.isdigit():
        return
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("", int(port)))
        except OSError as error:
            raise UserError(f"port {port}: {error.strerror}; another program has it; name another, or none") from error


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _refuse(message: str) -> NoReturn:
    raise UserError(f"run: {message}; torchrun's options go before the recipe")
