"""`distill-tune`: finds the command and runs it."""

import argparse
import sys
from collections.abc import Iterable

import distill_tune
from distill_tune.cli import (
    cache,
    cat,
    chat,
    compare,
    cp,
    data,
    demo,
    download,
    export,
    init_student,
    ls,
    plan,
    report,
    run,
    serve,
    sweep,
    upload,
    validate,
    watch,
)
from distill_tune.cli.caller import left_as_it_was
from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.ending import told_without_traceback
from distill_tune.streams import telling_of_lost_output
from distill_tune.threads import set_waiting

_DESCRIPTION = """Train a small language model (the student) to follow a large one (the teacher).

A recipe is a script, a config its settings; both are yours to copy and edit:

  distill-tune demo                                        see it work, in some minutes
  distill-tune ls                                          what there is
  distill-tune run kd_single_device --config tiny          train
  distill-tune run kd_single_device --config tiny kd_ratio=0.5 optimizer.lr=3e-4
  distill-tune download Qwen/Qwen3-0.6B                    a model, into models/
  distill-tune cp tiny mine.yaml                           your own config
  distill-tune validate --config mine.yaml                 check it, without running
  distill-tune data --config mine.yaml                     what of the rows is learned
  distill-tune watch outputs                               how runs are getting on
  distill-tune chat outputs/tiny                           talk to what was trained
  distill-tune report outputs/tiny                         what became of it, in one file
  distill-tune cache ls cache                              what a stored teacher holds
  distill-tune plan --config mine.yaml --gpu A100          its memory and hours, without a GPU
  distill-tune sweep kd_single_device --config mine.yaml kd_ratio=0.5,0.9
                                                           several settings, compared
  distill-tune serve --teacher models/Qwen3-8B --port 8000  a teacher for runs on other machines
"""


# By what is no command, but a recipe or another tool's word, the line that does it.
_MEANT = {
    **dict.fromkeys(("train", "distill", "kd", "kd_single_device"), "run kd_single_device --config tiny"),
    **dict.fromkeys(("finetune", "fine-tune", "sft"), "run kd_single_device --config tiny kd_ratio=0"),
    "kd_distributed": "run kd_distributed --config tiny",
    "generate": "run generate --config teacher_answers",
    "evaluate": "run evaluate --config tiny",
    "teacher_cache": "run teacher_cache --config cached_teacher cache.kind=sampled output_dir=outputs/cache",
}
_READ_THEMSELVES = ("run", "validate", "data", "plan", "compare", "cache", "serve", "sweep")
_COMMANDS = (
    *(run, ls, cp, cat, validate, data, plan, sweep, download, init_student, chat, compare, cache, serve),
    *(watch, report, export, upload, demo),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="distill-tune", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"distill-tune {distill_tune.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add_parser(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands.choices:
        parser.exit(2, f"distill-tune: {arguments[0]}: no such command{_near(arguments[0], commands.choices)}\n")
    # These read their arguments themselves: argparse would take torchrun's options and --config for its own, and
    # folders after an option for none.
    reads_itself = arguments[:1] and arguments[0] in _READ_THEMSELVES and arguments[1:2] not in (["-h"], ["--help"])
    options = parser.parse_args(arguments[:1] if reads_itself else arguments)
    options.arguments = arguments[1:]
    set_waiting()
    with telling_of_lost_output(), told_without_traceback(), left_as_it_was():
        options.function(options)
        sys.stdout.flush()  # a pipe that nobody reads is met here, not when Python ends


def _near(name: str, commands: Iterable[str]) -> str:
    """What somebody may have meant by a command that there is not."""
    if name in _MEANT:
        return f"; that is `distill-tune {_MEANT[name]}`"
    return f"{did_you_mean(nearest(name, commands))}; `distill-tune --help` lists them all"
