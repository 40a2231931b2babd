"""`distill-tune report`: what became of runs, as one file that opens anywhere."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill_tune.config.files import local_path, no_folder_at
from distill_tune.errors import UserError

_DESCRIPTION = """Write what became of a run, or of several side by side, into one file that opens anywhere.

  distill-tune report outputs/tiny                       outputs/tiny/report.html
  distill-tune report outputs/a outputs/b                report.html, both in each plot
  distill-tune report outputs --output all.html          every run below outputs
  distill-tune report outputs/tiny --format md           outputs/tiny/report.md, as for a model card
  distill-tune report outputs/tiny --png                 each plot besides as a picture

Findings first, each with the key to try; then losses, rates, speed and memory over steps or tokens, the tables and
answers of `distill-tune run evaluate` where the run has them, configs, data, versions and cost. A run may be going on,
or have stopped.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="a run's curves, findings, answers and tables in one HTML file",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=local_path, metavar="RUN", help="its output_dir, or a folder of such")
    parser.add_argument(
        "--output", type=local_path, help="the file (default: report.html in the run, or here of several)"
    )
    parser.add_argument("--format", choices=("html", "md"), default="html", help="(default: html)")
    parser.add_argument("--png", action="store_true", help="write each plot beside it, too; needs matplotlib")
    parser.set_defaults(function=_report)


def _report(options: argparse.Namespace) -> None:
    from distill_tune.reports.run_files import opened
    from distill_tune.reports.write import write_report

    for path in write_report(opened(_found(options.runs)), options.output, options.format, options.png):
        print(path)


def _found(folders: Sequence[Path]) -> list[Path]:
    from distill_tune.reports.run_files import find_runs

    found = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"report: {folder}: {no_folder_at(folder)}; name a run's output_dir")
        runs = find_runs(folder)
        if not runs:
            raise UserError(f"report: {folder}: no run has written there or below; name a run's output_dir")
        found += runs
    return found
