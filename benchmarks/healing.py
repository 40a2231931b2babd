"""What healing a pruned student by distillation is worth beside fine-tuning it as long, on real weights.

    python benchmarks/healing.py --teacher SMOLLM2 --folder OUT [--minutes 12] [--seeds 2] [--markdown HEALING.md]

SMOLLM2 is the folder of SmolLM2-135M-Instruct; its student has the 22 layers that ``init-student --drop 8`` leaves
(docs/pruning.md). Every run has the config smollm2/135M_pruned and takes as many steps as fit into ``--minutes`` of a
machine with nothing else to do, by the seconds that a step of its kind takes there (measured first, in turn; given by
``--seconds FINE_TUNED,KD`` they are not). The recipe evaluate then measures all of them on docstrings that none has
seen. Runs that are there already are not run again.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from idle import run_alone

KEPT = "0,1,2,3,4,6,7,8,9,11,12,13,15,16,17,18,22,23,24,27,28,29"
WAYS = {"fine-tuned": "kd_ratio=0", "KD": "kd_ratio=0.9"}
MEASURES = ["supervised.perplexity", "supervised.bits_per_byte", "to_teacher.forward_kl.mean", "to_teacher.agreement"]
TIMED_STEPS = 6
HELD_OUT = "{_component_: distill_tune.data.docstrings, num_rows: 100, held_out: True, min_characters: 250}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", help="of a step, FINE_TUNED,KD")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    pruned = options.folder / "pruned"
    if not pruned.is_dir():
        distill_tune("init-student", options.teacher, pruned, "--layers", KEPT)
    seconds = [float(one) for one in options.seconds.split(",")] if options.seconds else step_seconds(options)
    steps = {way: round(60 * options.minutes / its) for way, its in zip(WAYS, seconds, strict=True)}
    print(f"seconds a step {dict(zip(WAYS, seconds, strict=True))}, steps {steps}", flush=True)
    for seed in range(options.seeds):
        for way in WAYS:
            train(options, way, steps[way], seed, options.folder / f"{way}_{seed}")
    text = table(evaluate(options), steps, options.seeds)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


def distill_tune(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "distill_tune", *map(str, command)], check=True)


def step_seconds(options: argparse.Namespace) -> list[float]:
    """Of each way, the median over two runs in turn, without their first steps."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(2):
        for way in WAYS:
            out = options.folder / f"timed_{way}_{number}"
            run_alone(way, functools.partial(train, options, way, TIMED_STEPS, 0, out))
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            found[way] += [line["seconds"] for line in lines[2:]]
    return [statistics.median(its) for its in found.values()]


def train(options: argparse.Namespace, way: str, steps: int, seed: int, out: Path) -> None:
    if (out / "model").is_dir():
        return
    settings = [*models(options), WAYS[way], f"seed={seed}", f"max_steps_per_epoch={steps}", "save_every_n_steps=null"]
    distill_tune("run", "kd_single_device", *settings, f"output_dir={out}")


def models(options: argparse.Namespace) -> list[str]:
    paths = [f"teacher_model.path={options.teacher}", f"tokenizer.path={options.teacher}"]
    return ["--config", "smollm2/135M_pruned", f"model.path={options.folder / 'pruned'}", *paths]


def evaluate(options: argparse.Namespace) -> Mapping[str, Any]:
    """What the recipe found of every student, by label."""
    runs = ", ".join(f"{way}_{seed}: {options.folder}/{way}_{seed}" for way in WAYS for seed in range(options.seeds))
    settings = ["num_answers=0", "measure_speed=False", f"+dataset_test={HELD_OUT}", f"+models={{{runs}}}"]
    distill_tune("run", "evaluate", *models(options), *settings, f"output_dir={options.folder}")
    return json.loads((options.folder / "evaluation" / "results.json").read_text())


def table(found: Mapping[str, Any], steps: Mapping[str, int], seeds: int) -> str:
    """Means over seeds with their standard deviations, and of each seed's pair the difference with its interval."""
    lines = ["| model | steps | perplexity | bits per byte | KL to teacher | agreement |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    groups = {"teacher": ["teacher"], "pruned": ["before"]}
    groups |= {way: [f"{way}_{seed}" for seed in range(seeds)] for way in WAYS}
    for name, labels in groups.items():
        cells = [spread([value(found["models"][label], measure) for label in labels]) for measure in MEASURES]
        lines.append(f"| {name} | {steps.get(name, '')} | {' | '.join(cells)} |")
    told = [pair["words"] for pair in found["pairs"] if seed_of(pair["first"]) == seed_of(pair["second"]) is not None]
    return "\n".join([*lines, "", *(f"- {words}" for words in told)]) + "\n"


def seed_of(label: str) -> str | None:
    return label.rpartition("_")[2] if label.startswith(tuple(WAYS)) else None


def value(model: Mapping[str, Any], measure: str) -> float | None:
    found: Any = model
    for key in measure.split("."):
        found = found[key] if found is not None else None
    return found


def spread(values: Sequence[float | None]) -> str:
    numbers = [one for one in values if one is not None]
    if not numbers:
        return ""
    mean = f"{statistics.fmean(numbers):.4g}"
    return f"{mean} +- {statistics.stdev(numbers):.2g}" if len(numbers) > 1 else mean


if __name__ == "__main__":
    main()
