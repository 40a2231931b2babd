"""`distill-tune demo`: a teacher distilled into a student on real text, in some minutes, with nothing to download."""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_tune.cli.compare import compare_folders
from distill_tune.cli.model_folder import ModelFolder
from distill_tune.config.files import local_path
from distill_tune.errors import UserError

_DESCRIPTION = """Distil a small teacher into a smaller student on real text, with nothing to download.

The text is the documentation of the Python code on this machine: questions about functions and classes, answered by
their docstrings. The demo fine-tunes the student, distils it plainly and with LoRA, and compares all on rows that no
model has seen. It shows each command before it runs it. A second call goes on where the first one stopped.
"""

_RUNS = {
    "fine-tuned student": ("finetuned", "tiny", ["kd_ratio=0", "optimizer.lr=3e-4"]),
    "distilled student": ("distilled", "tiny", []),
    "distilled with LoRA": ("distilled_lora", "tiny_lora", []),
}
# Without a teacher's soft targets the student overfits at the learning rate of distillation: each has its best.
_HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 300, "held_out": True, "min_characters": 250}
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
    _compare(console, options.folder)


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


def _compare(console: Any, folder: Path) -> None:
    """The table and some answers, from the report of an earlier call where no model has changed since."""
    from distill_tune import evaluation

    stamp = {name: _modified(folder / run[0] / "model") for name, run in _RUNS.items()}
    path = folder / "report" / "comparison.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stored.get("models") == stamp:
        comparisons, answers = [evaluation.Comparison(**row) for row in stored["comparisons"]], stored["answers"]
    else:
        with console.status("comparing on held-out rows"):
            comparisons, answers = _measure(folder)
    teacher, base, *students = comparisons
    sentence = evaluation.gap_sentence(teacher, base, students)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {"models": stamp, "comparisons": [dataclasses.asdict(row) for row in comparisons], "answers": answers}
    path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    markdown = f"{evaluation.comparison_markdown(comparisons)}\n{sentence}\n\n{''.join(_answer_lines(answers))}"
    path.with_suffix(".md").write_text(markdown, encoding="utf-8")

    console.print(
        f"\n{_HELD_OUT['num_rows']} held-out rows, from modules that no model was trained on:", highlight=False
    )
    console.print(evaluation.comparison_table(comparisons, console))
    console.print(sentence, highlight=False)
    console.print()
    for line in _answer_lines(answers):
        console.print(line, end="", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Written to {path.parent}. Next, your own data:", highlight=False)
    console.print("  distill-tune cp tiny mine.yaml", highlight=False)
    console.print(
        '  distill-tune run kd_single_device --config mine.yaml "dataset={_component_: distill_tune.data.instruct, '
        'source: my.json}"',
        highlight=False,
        soft_wrap=True,
    )


def _measure(folder: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    import torch
    from omegaconf import OmegaConf

    from distill_tune import config, data, evaluation, training
    from distill_tune.config.files import demo_model_folder, find_config
    from distill_tune.config.load import load_config

    cfg = load_config(find_config("tiny"))
    tokenizer = config.instantiate(cfg.tokenizer)
    rows, _ = data.prepare_rows(OmegaConf.create(_HELD_OUT), tokenizer, cfg.tokenizer)
    plan = data.StepPlan(rows, batch_size=cfg.batch_size, shuffle=False)
    folders = {
        "teacher": demo_model_folder("teacher"),
        "base student": demo_model_folder("student"),
        **{name: folder / run[0] / "model" for name, run in _RUNS.items()},
    }
    comparisons = compare_folders(folders, plan)
    from distill_tune.data import docstring_rows

    shown = list(docstring_rows.collect(_SHOWN_ANSWERS, held_out=True))
    answers = [{"question": row["instruction"], "docstring": row["output"]} for row in shown]
    for name, path in folders.items():
        model = ModelFolder.open(path).load(training.find_device("auto"), torch.float32)
        given = evaluation.answers(model, tokenizer, [row["instruction"] for row in shown])
        for row, text in zip(answers, given, strict=True):
            row[name] = text
    return comparisons, answers


def _answer_lines(answers: list[dict[str, Any]]) -> Iterator[str]:
    for row in answers:
        yield f"{row['question']}\n"
        yield from (f"  {name:<20} {text}\n" for name, text in row.items() if name != "question")
        yield "\n"


def _modified(folder: Path) -> int:
    return max(file.stat().st_mtime_ns for file in folder.iterdir())
