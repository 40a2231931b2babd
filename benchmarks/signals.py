"""What each signal is worth on the demo's models: held-out perplexity, KL and agreement after the same steps.

    python benchmarks/signals.py --folder OUT [--epochs 2] [--only reverse_kl,top_k] [--markdown SIGNALS.md]

Each config of configs/signals is trained with one seed beside plain distillation and fine-tuning, then all are compared
on rows of modules that no model has seen. Runs that are there already are not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from held_out import figures

from distill_tune.config.files import config_names, demo_model_folder
from distill_tune.data import docstring_rows

HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 300, "held_out": True, "min_characters": 250}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=2, help="of 75 steps of 16 rows")
    parser.add_argument("--only", default="", help="names of configs, with commas; default all that need no file")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    runs = {"plain": ["tiny"], "fine_tuned": ["tiny", "kd_ratio=0", "optimizer.lr=3e-4"]}
    names = [name.partition("/")[2] for name in config_names() if name.startswith("signals/")]
    runs |= {name: [name] for name in names if name != "gguf_teacher"}
    wanted = [name for name in options.only.split(",") if name] or list(runs)
    options.folder.mkdir(parents=True, exist_ok=True)
    write_rows(options.folder / "rows.json")
    for name in dict.fromkeys(["plain", *wanted]):
        train(options.folder, name, runs[name], options.epochs)
    table(options.folder, [name for name in runs if (options.folder / name / "model").is_dir()], options.markdown)


def write_rows(path: Path) -> None:
    """The demo's rows, each with a teacher: the large one for every row but each fourth."""
    rows = docstring_rows.collect(1200, held_out=False, min_characters=250)
    named = [row | {"teacher_id": "small" if number % 4 == 0 else "large"} for number, row in enumerate(rows)]
    path.write_text(json.dumps(named))


def train(folder: Path, name: str, run: list[str], epochs: int) -> None:
    if (folder / name / "model").is_dir():
        return
    settings = [f"output_dir={name}", f"epochs={epochs}", "max_steps_per_epoch=75"]
    if name == "earlier_checkpoint":
        settings.append(f"teacher_model.path=plain/checkpoints/step_{75 * epochs}")
    command = ["run", "kd_single_device", "--config", run[0], *run[1:], *settings]
    subprocess.run([sys.executable, "-m", "distill_tune", *command], cwd=folder, check=True)


def table(folder: Path, names: list[str], markdown: Path | None) -> None:
    folders = {"teacher": demo_model_folder("teacher"), "base student": demo_model_folder("student")}
    folders |= {name: folder / name / "model" for name in names}
    lines = [
        "| signal | perplexity | KL from the teacher | agreement | seconds a step |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, found in figures(folders, HELD_OUT).items():
        metrics = folder / name / "metrics.jsonl"
        seconds = (
            [json.loads(line)["seconds"] for line in metrics.read_text().splitlines()] if metrics.is_file() else []
        )
        middle = f"{statistics.median(seconds):.2f}" if seconds else ""
        lines.append(f"| {name} | {found.perplexity:.2f} | {found.kl:.4f} | {found.agreement:.1%} | {middle} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if markdown:
        markdown.write_text(text)


if __name__ == "__main__":
    main()
