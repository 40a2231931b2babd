"""`distill-tune demo`: a teacher distilled into a student on real text, in some minutes, with nothing to download."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from distill_tune.config.files import local_path
from distill_tune.errors import UserError

_DESCRIPTION = """Distil a small teacher into a smaller student on real text, with nothing to download.

The text is the documentation of the Python code on this machine: questions about functions and classes, answered by
their docstrings. The demo fine-tunes the student, distils it plainly and with LoRA, and compares all on rows that no
model has seen. It shows each command before it runs it. A second call goes on where the first one stopped.
"""


class _Run(NamedTuple):
    folder: str
    config: str
    overrides: list[str]


# Without a teacher's soft targets the student overfits at the learning rate of distillation: each has its best.
_RUNS = {
    "fine-tuned": _Run("finetuned", "tiny", ["kd_ratio=0", "optimizer.lr=3e-4"]),
    "distilled": _Run("distilled", "tiny", []),
    "distilled with LoRA": _Run("distilled_lora", "tiny_lora", []),
}
_SHOWN_ANSWERS = 3


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "demo",
        help="see it work: distil a small teacher on real text",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=local_path, default=Path("demo"), help="where the results go (default: demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default: 0)")
    parser.set_defaults(function=_demo)


def _demo(options: argparse.Namespace) -> None:
    from rich.console import Console

    console = Console()
    for name, (folder, config, overrides) in _RUNS.items():
        output = options.folder / folder
        if (output / "model").is_dir():
            console.print(f"{name}: {output} is there already", highlight=False)
            continue
        settings = [*overrides, f"seed={options.seed}", f"output_dir={output}"]
        if (output / "checkpoints").is_dir():
            settings.append("resume_from_checkpoint=True")
        _run(console, ["run", "kd_single_device", "--config", config, *settings])
    _evaluate(console, options.folder)


def _run(console: Any, arguments: list[str]) -> None:
    console.print(f"\n$ {shlex.join(['distill-tune', *arguments])}", style="bold", highlight=False, soft_wrap=True)
    with subprocess.Popen([sys.executable, "-m", "distill_tune", *arguments]) as run:
        try:
            status = run.wait()
        except KeyboardInterrupt:
            run.wait()  # the terminal has told it, too: it ends its step with a checkpoint for the next call
            raise
    if status:
        raise UserError(f"demo: the command above ended with {status}; mend what it says, then call the demo again")


def _evaluate(console: Any, folder: Path) -> None:
    """The tables and some answers, of an earlier call where no model has changed since."""
    results = folder / _RUNS["distilled"].folder / "evaluation"
    written = results / "results.json"
    models = [folder / run.folder / "model" for run in _RUNS.values()]
    if written.is_file() and written.stat().st_mtime >= max(map(_modified, models)):
        console.print(f"{written} is there already", highlight=False)
        console.print((results / "table.md").read_text(encoding="utf-8"), markup=False, highlight=False, soft_wrap=True)
    else:
        others = {name: str(folder / run.folder) for name, run in _RUNS.items() if name != "distilled"}
        named = ", ".join(f"{name}: {path}" for name, path in others.items())
        output = folder / _RUNS["distilled"].folder
        _run(console, ["run", "evaluate", "--config", "tiny", f"output_dir={output}", f"models={{{named}}}"])
    lines = (results / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    for line in map(json.loads, lines[:_SHOWN_ANSWERS]):
        console.print(line["prompt"], highlight=False, markup=False, soft_wrap=True)
        answers = {"docstring": line["reference"]} | {name: of["answer"] for name, of in line["models"].items()}
        for name, text in answers.items():
            console.print(f"  {name:<20} {text}", highlight=False, markup=False, soft_wrap=True)
        console.print()
    page = folder / "report.html"
    _run(console, ["report", *(str(folder / run.folder) for run in _RUNS.values()), "--output", str(page)])
    console.print(
        f"Open {page} in a browser: curves, findings and answers of the three runs.", highlight=False, soft_wrap=True
    )
    console.print("Your own data next:", highlight=False)
    console.print("  distill-tune cp tiny mine.yaml", highlight=False)
    console.print(
        '  distill-tune run kd_single_device --config mine.yaml "dataset={_component_: distill_tune.data.instruct, '
        'source: my.json}"',
        highlight=False,
        soft_wrap=True,
    )


def _modified(folder: Path) -> float:
    return max(file.stat().st_mtime for file in folder.iterdir())
