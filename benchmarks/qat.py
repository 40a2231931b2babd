"""What quantisation costs a distilled student, and how much less where it was trained for it, on the demo's models.

    python benchmarks/qat.py --folder OUT [--seeds 3] [--epochs 2] [--only Q4_0,Q8_0] [--markdown QAT.md]

Students that have taken equally many steps of KD, without a quantizer and with each; KL from the teacher and perplexity
of their weights, and activations, as each format gives them back, on rows of modules that no model has seen; mean and
standard deviation over seeds. The teacher is asked once, for a cache of its hidden states. Runs that are there already
are not run again.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf

from distill_tune import config, data, losses, qat
from distill_tune.cli.main import main as command_line
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config
from distill_tune.models import build_on_meta, load_weights, open_checkpoint
from distill_tune.teachers import LiveTeacher

SCHEMES = {
    "Q4_0": qat.Q4_0(),
    "Int8DynActInt4Weight": qat.Int8DynActInt4Weight(32),
    "Int4WeightOnly": qat.Int4WeightOnly(128),
    "Q8_0": qat.Q8_0(),
}
EPOCH = 75  # steps
HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 200, "held_out": True, "min_characters": 250}


class Measured(NamedTuple):
    kl: float
    perplexity: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help=f"of {EPOCH} steps of 16 rows")
    parser.add_argument("--only", default="", help="names of schemes, with commas")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or list(SCHEMES)
    options.folder.mkdir(parents=True, exist_ok=True)
    runs = {(name, seed): train(options, name, seed) for seed in range(options.seeds) for name in ["none", *names]}
    rows = held_out()
    teacher = teacher_signals(rows)
    plain = [measure(runs["none", seed], None, rows, teacher) for seed in range(options.seeds)]
    lines = [
        "| format | trained | KL from the teacher | perplexity | KL that quantising adds |",
        "| --- | --- | ---: | ---: | ---: |",
        line("fp32", "KD", plain, plain),
    ]
    for name in names:
        after, trained = (
            [measure(runs[run, seed], SCHEMES[name], rows, teacher) for seed in range(options.seeds)]
            for run in ("none", name)
        )
        lines.append(line(name, "KD, quantised afterwards", after, plain))
        lines.append(line(name, "KD with quantizer", trained, plain))
    text = "\n".join(lines) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


def train(options: argparse.Namespace, name: str, seed: int) -> Path:
    """The folder of a student's weights, of one scheme or ``none``."""
    cache = options.folder / "teacher"
    if not (cache / "manifest.json").is_file():
        run("teacher_cache", "cache.kind=hidden", "shuffle=False", f"output_dir={cache}")
    out = options.folder / f"{name}_{seed}"
    if not (out / "model").is_dir():
        cached = f"teacher_model={{_component_: distill_tune.teachers.Cached, path: {cache}}}"
        settings = [cached, f"seed={seed}", f"epochs={options.epochs}", f"max_steps_per_epoch={EPOCH}"]
        if name == "none":
            settings.append("quantizer=null")
        else:
            takes = "" if name.startswith("Q") else f", groupsize: {SCHEMES[name].groupsize}"
            settings.append(f"quantizer={{_component_: distill_tune.qat.{name}{takes}}}")
        run("kd_single_device", *settings, f"output_dir={out}")
    return out / "model"


def run(recipe: str, *settings: str) -> None:
    command_line(["run", recipe, "--config", "qat", "device=cpu", *settings])


def held_out() -> list[data.Batch]:
    cfg = load_config(find_config("tiny"))
    rows, _ = data.prepare_rows(OmegaConf.create(HELD_OUT), config.instantiate(cfg.tokenizer), cfg.tokenizer)
    return list(data.StepPlan(rows, batch_size=16, shuffle=False).epoch())


def loaded(folder: Path, scheme: qat.Scheme | None) -> LiveTeacher:
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})
    model = build_on_meta("model", component)
    if scheme is not None:
        qat.prepare(model, scheme)
    load_weights(model, open_checkpoint("model", component, None), torch.device("cpu"))
    return LiveTeacher(model)


def teacher_signals(rows: Sequence[data.Batch]) -> list[losses.HiddenStates]:
    teacher = loaded(demo_model_folder("teacher"), None)
    return [teacher(batch) for batch in rows]


@torch.no_grad()
def measure(
    folder: Path, scheme: qat.Scheme | None, rows: Sequence[data.Batch], teacher: Sequence[losses.HiddenStates]
) -> Measured:
    student, cross_entropy, divergence, count = loaded(folder, scheme), 0.0, 0.0, 0
    for batch, its in zip(rows, teacher, strict=True):
        mine, targets = student(batch), batch.targets[0, batch.supervised_positions]
        sums = losses.distillation_loss(
            mine.hidden, mine.projection, targets, its, kd_ratio=0.5, divergence=losses.ForwardKL()
        )
        cross_entropy, divergence = cross_entropy + sums.ce.item(), divergence + sums.kd.item()
        count += len(targets)
    return Measured(divergence / count, math.exp(cross_entropy / count))


def line(name: str, trained: str, found: Sequence[Measured], plain: Sequence[Measured]) -> str:
    """A row of the table; what is added is told of each seed's own student without a format."""
    added = [its.kl - whole.kl for its, whole in zip(found, plain, strict=True)]
    kl, perplexity = ([getattr(its, of) for its in found] for of in Measured._fields)
    cells = [spread(kl, 4), spread(perplexity, 2), spread(added, 4) if found is not plain else ""]
    return f"| {name} | {trained} | {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
