"""What a teacher that is stored is worth on the demo's models, beside the live one and plain fine-tuning.

    python benchmarks/cached.py --folder WORK --out OUT [--device cuda] [--at-once 12]
    python benchmarks/cached.py --folder WORK --out OUT --short     few rows and steps: does all of it run?

The recipe teacher_cache makes a cache of each kind; kd_single_device trains with each way, kd_ratio and seed, as many
steps as the demo; each student is compared with the teacher on rows of modules that no model has seen. Written are
cached.md and cached.json. Parts (--only): ``worth``; ``positions``, distilling at a fifth of the positions
(positions.py); ``angles``, those of sparse.py; and ``seconds``: runs one by one after all others, in rounds in which
each way has its turn; a step is set beside the step of the same rows in the same round. What WORK has already is not
run again.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cached_runs
import torch
from cached_tables import Found, all_tables, name_of
from cached_ways import FINE_TUNING, POSITIONS, WAYS
from first_hour.outcome import OK, Item, Settings
from first_hour.report import words
from first_hour.workers import work_through

KD_RATIO_OF_SECONDS = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for caches, runs, and what was found")
    parser.add_argument("--out", type=Path, help="for the two files (default: --folder)")
    parser.add_argument("--only", default="worth,positions,angles,seconds", help="parts, with commas")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, but those of seconds")
    parser.add_argument("--stop-after", type=float, metavar="SECONDS", help="after which no further run is begun")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kd-ratio", default="0.9,1", help="with commas")
    parser.add_argument("--epochs", type=int, default=4, help="of 75 steps of 16 rows")
    parser.add_argument("--rounds", type=int, default=4, help="of seconds")
    parser.add_argument("--steps", type=int, default=40, help="of a run of seconds")
    parser.add_argument("--short", action="store_true", help="one seed, three steps, few rows")
    options = parser.parse_args()
    options.kd_ratio = [float(ratio) for ratio in options.kd_ratio.split(",")]
    options.num_rows, options.held_out, options.steps_per_epoch = 1200, 300, 75
    if options.short:
        options.seeds = options.epochs = options.rounds = 1
        options.num_rows, options.held_out, options.steps_per_epoch, options.steps = 64, 16, 3, 3
    run(options)


def run(options: argparse.Namespace) -> None:
    folder, out = options.folder.resolve(), (options.out or options.folder).resolve()
    for path in (folder, out):
        path.mkdir(parents=True, exist_ok=True)
    results, parts = folder / "results.jsonl", options.only.split(",")
    cached_runs.write_rows(folder, options.num_rows, options.held_out)
    until = time.time() + options.stop_after if options.stop_after else None
    try:
        work(_caches(folder), options, results, options.at_once)
        items = _trainings(options, folder, until, parts)
        if "angles" in parts:
            items.insert(0, Item("angles", "angles", "cached_runs:angles"))
        work(items, options, results, options.at_once)
        if "seconds" in parts:
            work(_timings(options, folder), options, results, at_once=1)
    finally:
        found = read(results)
        tables = all_tables(found, options.kd_ratio, options.seeds, options.rounds)
        (out / "cached.md").write_text(tables)
        content = {"machine": machine(options.device), "options": vars(options) | {"folder": "", "out": ""}}
        content["found"] = [{"section": key[0], "name": key[1], "figures": of} for key, of in found.items()]
        (out / "cached.json").write_text(json.dumps(content, indent=1))
        print(tables)


def work(items: Sequence[Item], options: argparse.Namespace, results: Path, at_once: int) -> None:
    """Those of which nothing is there; what each finds is written at once."""
    there = read(results)
    items = [item for item in items if (item.section, item.name) not in there]

    def told(result: dict[str, Any]) -> None:
        print(f"{result['section']}: {result['name']}: {words(result)}, {result.get('seconds')} s", flush=True)
        if result["state"] == OK:
            with results.open("a") as file:
                file.write(json.dumps(result) + "\n")

    with tempfile.TemporaryDirectory() as name:
        work_through(items, Settings(options.device, options.short, Path(name)), told, max(1, min(at_once, len(items))))


def read(results: Path) -> Found:
    lines = results.read_text().splitlines() if results.is_file() else []
    return {(line["section"], line["name"]): line["figures"] for line in map(json.loads, lines)}


def _caches(folder: Path) -> list[Item]:
    return [
        Item(
            "caches",
            way.name,
            "cached_runs:made",
            {"folder": str(folder), "short": way.short, "overrides": list(way.cache)},
        )
        for way in WAYS
        if way.cache
    ]


def _trainings(options: argparse.Namespace, folder: Path, until: float | None, parts: Sequence[str]) -> list[Item]:
    """Seed by seed, so that where time ends, the seeds before it are whole."""
    items = []
    if "worth" in parts:
        items.append(Item("worth", "untrained", "cached_runs:untrained", {"folder": str(folder)}))
    ways = [("worth", way) for way in WAYS] * ("worth" in parts)
    ways += [("positions", way) for way in POSITIONS] * ("positions" in parts)
    common = [f"epochs={options.epochs}", f"max_steps_per_epoch={options.steps_per_epoch}"]
    for seed in range(options.seeds):
        for number, kd_ratio in enumerate(options.kd_ratio):
            for section, way in ways:
                if way is FINE_TUNING and number:
                    continue
                ratio = 0 if way is FINE_TUNING else kd_ratio
                arguments = {
                    "folder": str(folder),
                    "short": f"{way.short}_{ratio:g}_{seed}",
                    "overrides": [*way.settings(folder, ratio), *common, f"seed={seed}"],
                    "until": until,
                }
                items.append(Item(section, name_of(way, ratio, seed), "cached_runs:trained", arguments))
    return items


def _timings(options: argparse.Namespace, folder: Path) -> list[Item]:
    common = ["epochs=1", f"max_steps_per_epoch={options.steps}"]
    items = []
    for number in range(-1, options.rounds):  # the first round makes kernels, and fills caches of the disk
        start = number % len(WAYS)
        for way in WAYS[start:] + WAYS[:start]:
            arguments = {"folder": str(folder), "short": f"timed_{way.short}"}
            arguments["overrides"] = [*way.settings(folder, KD_RATIO_OF_SECONDS), *common]
            items.append(Item("seconds", f"round {number}: {way.name}", "cached_runs:timed", arguments))
    return items


def machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {"device": name, "torch": torch.__version__, "python": sys.version.split()[0]}


if __name__ == "__main__":
    main()
