"""How a recipe starts: from `distill-tune run`, from torchrun, or as a plain script."""

import argparse
import atexit
import contextlib
import errno
import faulthandler
import inspect
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill_tune.config.check import checked_config
from distill_tune.config.memory_advice import memory_advice, memory_ran_out
from distill_tune.config.secrets import hide_secrets
from distill_tune.disk import release_locks
from distill_tune.errors import FinishedRun, UserError
from distill_tune.launch import num_processes, stop_with_torchrun
from distill_tune.streams import OutputLost, going_on_without_output, lead_nowhere
from distill_tune.waiting import has_waited_in_vain, where_it_lost_a_rank, who_tells, whom_it_waited_for

_GRACE, _GRACE_OF_OTHERS = 10, 3  # seconds


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
        _end_at_once(0)


def _file_of(main: Callable[..., Any]) -> Path:
    """Where ``main`` is written; the script that runs where that is another's wrapper, or no function."""
    code = getattr(inspect.unwrap(main), "__code__", None)
    script = getattr(sys.modules["__main__"], "__file__", None)
    files = [Path(file) for file in (code and code.co_filename, script) if file]
    starts_one = (file for file in files if file.is_file() and b"run_recipe" in file.read_bytes())
    return next(starts_one, files[0])


class told_without_traceback:
    """Turns a :class:`UserError` into its message on stderr and exit code 2, and Ctrl-C into a line and 130.

    Of several processes that fail, the first one tells why, with its rank; the others end in silence. With
    DISTILL_TUNE_TRACEBACK=1 in the environment the traceback is shown, for those who edit a recipe.
    """

    def __enter__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")  # a user's text may be none that can be written

    def __exit__(self, kind: type | None, error: BaseException | None, where: object) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        if isinstance(error, FinishedRun):
            print(error)
            return True
        if isinstance(error, OutputLost):
            lead_nowhere(sys.stdout)
            if error.errno == errno.EPIPE:  # as `| head` ends other commands
                sys.exit(128 + signal.SIGPIPE)
            print(f"distill-tune: stdout: {error.strerror}", file=sys.stderr)
            sys.exit(1)
        status = 130 if isinstance(error, KeyboardInterrupt) else 2 if isinstance(error, UserError) else 1
        has_waited = has_waited_in_vain(error)
        if status == 1 and num_processes() > 1:
            # A lost connection is another's failure: torchrun has time to find that one, and ends this one meanwhile.
            time.sleep(_GRACE_OF_OTHERS)
        who = who_tells()
        if who is None:
            if status != 130:  # a terminal's Ctrl-C ends all alike
                time.sleep(_GRACE)  # torchrun ends all when one ends: the one that tells must come first
            _end_at_once(status)
        else:
            print(_told(error, who, has_waited), file=sys.stderr)
        if who:
            _end_at_once(status)
        sys.exit(status)


def _told(error: BaseException, who: str, has_waited: bool) -> str:
    if isinstance(error, UserError) and os.environ.get("DISTILL_TUNE_TRACEBACK") != "1":
        return f"distill-tune: {who}{hide_secrets(str(error))}"
    if isinstance(error, KeyboardInterrupt):
        return f"distill-tune: {who}interrupted"
    if told := whom_it_waited_for(error) if has_waited else where_it_lost_a_rank(error):
        return f"distill-tune: {who}{told}"
    shown = hide_secrets("".join(traceback.format_exception(error))).rstrip("\n")
    return f"distill-tune: {who}failed:\n{shown}" if who else shown


def _end_at_once(status: int) -> None:
    """End without waiting for the other processes, which the usual way out of a process group would."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
