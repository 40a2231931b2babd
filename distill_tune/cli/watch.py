"""`distill-tune watch`: running jobs in the terminal, from the files that they write."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from distill_tune.config.files import local_path, no_folder_at
from distill_tune.errors import UserError

_DESCRIPTION = """Watch runs: their curves, how far they are, when they will be through, and what is wrong with them.

  distill-tune watch outputs                  all runs below a folder, the newest first; new ones as they begin
  distill-tune watch outputs/a outputs/b      two of them, one above another
  distill-tune watch outputs --once           a few plain lines of each, for logs and pipes

Only files are read, and nothing is written. Ctrl-C ends it; the runs go on.
"""
_SECONDS = 2.0


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "watch",
        help="watch runs in the terminal",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", type=local_path, help="a run's folder, or one of runs")
    parser.add_argument("--once", action="store_true", help="print how they stand and end; so also without a terminal")
    parser.add_argument(
        "--every", metavar="SECONDS", type=_seconds, default=_SECONDS, help=f"look so often (default: {_SECONDS:g})"
    )
    parser.set_defaults(function=_watch)


def _seconds(text: str) -> float:
    if (seconds := float(text)) > 0:
        return seconds
    raise argparse.ArgumentTypeError(f"{text}: must be above 0")


def _watch(options: argparse.Namespace) -> None:
    for folder in options.folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: {no_folder_at(folder)}; name a run's output_dir, or a folder of runs")
    if options.once or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        _print_once(options.folders)
    else:
        _follow(options.folders, options.every)


def _print_once(folders: Sequence[Path]) -> None:
    from distill_tune.reports.followed_run import FollowedRuns
    from distill_tune.reports.watched_runs import plain

    if not (runs := FollowedRuns(folders).read()):
        raise UserError(f"{_named(folders)}: no run has written there; name a run's output_dir, or a folder of runs")
    print("\n".join(map(plain, runs)))


def _follow(folders: Sequence[Path], every: float) -> None:
    """Until Ctrl-C or SIGTERM, which leave the terminal as it was."""
    from rich.console import Console, Group
    from rich.live import Live

    from distill_tune.reports.followed_run import FollowedRuns
    from distill_tune.reports.watched_runs import screen

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console, watched = Console(), FollowedRuns(folders)
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            runs = watched.read()
            live.update(
                Group(*(screen(runs, *console.size) if runs else [f"{_named(folders)}: no run yet"])), refresh=True
            )
            time.sleep(every)


def _named(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))
