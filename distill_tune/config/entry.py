"""How a recipe starts: from `distill-tune run`, from torchrun, or as a plain script."""

import argparse
import atexit
import contextlib
import faulthandler
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill_tune.config.check import checked_config
from distill_tune.disk import release_locks
from distill_tune.ending import end_at_once, told_without_traceback
from distill_tune.errors import UserError
from distill_tune.launch import num_processes, stop_with_torchrun
from distill_tune.less_memory import memory_advice, memory_ran_out
from distill_tune.streams import going_on_without_output


def run_recipe(main: Callable[[DictConfig], None], arguments: Sequence[str] | None = None) -> None:
    """Read ``--config NAME [overrides]``, check every key, value and component argument, then call ``main(cfg)``.

    A user's mistake ends with its message and exit code 2.
    """
    recipe = _file_of(main)
    parser = argparse.ArgumentParser(prog=recipe.name, usage=f"{recipe.name} --config CONFIG [key=value ...]")
    parser.add_argument("--config", required=True, help="a config's name or path")
    parser.add_argument("overrides", nargs="*", help="key=value, +key=value, ~key")
    options = parser.parse_intermixed_args(arguments)
    stop_with_torchrun()
    with going_on_without_output(), told_without_traceback():
        cfg = checked_config(recipe, options.config, options.overrides, "all")
        with contextlib.suppress(OSError, ValueError):  # a stderr that is no file
            faulthandler.enable()  # a process that PyTorch aborts says in which line it was
        try:
            main(cfg)
        except Exception as error:
            if told := memory_ran_out(error):
                raise UserError(f"{told}; what costs least: {memory_advice(cfg, num_processes() > 1)}") from error
            raise
        finally:
            release_locks()
    if num_processes() > 1:
        # All is written; threads of gloo and NCCL sometimes abort an interpreter that takes itself down.
        atexit._run_exitfuncs()
        end_at_once(0)


def _file_of(main: Callable[..., Any]) -> Path:
    """Where ``main`` is written; the script that runs where that is another's wrapper, or no function."""
    code = getattr(inspect.unwrap(main), "__code__", None)
    script = getattr(sys.modules["__main__"], "__file__", None)
    files = [Path(file) for file in (code and code.co_filename, script) if file]
    starts_one = (file for file in files if file.is_file() and b"run_recipe" in file.read_bytes())
    return next(starts_one, files[0])
