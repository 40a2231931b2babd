"""What the workers of cached.py do: make a cache, train by the recipe and measure what came of it, time steps."""

import functools
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from first_hour.outcome import NotMeasured, Settings
from held_out import Figures, figures
from omegaconf import OmegaConf

from distill_tune import cache, config, data
from distill_tune.cli.main import main
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config
from distill_tune.data import docstring_rows

CONFIG = "cached_teacher"
ROWS, HELD_OUT = "rows.json", "held_out.json"


def write_rows(folder: Path, num_rows: int, num_held_out: int) -> None:
    """Those of the demo, once: a run that looked for them itself would look at each installed file."""
    for name, held_out, count in ((ROWS, False, num_rows), (HELD_OUT, True, num_held_out)):
        if not (folder / name).is_file():
            found = docstring_rows.collect(count, held_out=held_out, min_characters=250)
            kept = [{"instruction": row["instruction"], "output": row["output"]} for row in found]
            (folder / name).write_text(json.dumps(kept))
        rows(folder / name)  # their tokens are kept


def made(settings: Settings, folder: str, short: str, overrides: list[str]) -> dict[str, Any]:
    """A cache; its bytes a supervised token, and how many distinct tokens it has of each."""
    path = Path(folder) / "caches" / short
    shutil.rmtree(path, ignore_errors=True)  # an interrupted run's
    main(["run", "teacher_cache", "--config", CONFIG, *overrides, *_common(settings, folder, path)])
    reader = cache.CacheReader(path)
    figures = {"bytes": reader.manifest.num_bytes / reader.manifest.num_positions, "distinct": None}
    if reader.manifest.kind != cache.HiddenEncoding.kind:
        plan = rows(Path(folder) / ROWS)
        keys = [key for step in range(plan.steps_per_epoch) for key in plan.record_keys(0, step)]
        record = reader.encoding.decode(reader.rows(keys))
        figures["distinct"] = record.is_token.sum(-1).float().mean().item()
    return figures


def trained(settings: Settings, folder: str, short: str, overrides: list[str], until: float | None) -> dict[str, Any]:
    """A run's figures on held-out rows.

    Args:
        until: of ``time.time``; later none is begun.
    """
    if until and time.time() > until:
        raise NotMeasured("no time was left")
    output = Path(folder) / "runs" / short
    started = time.perf_counter()
    steps = _run(settings, folder, output, overrides)
    seconds = time.perf_counter() - started
    _, found = _measured(output / "model", settings, folder)
    shutil.rmtree(output)
    return found | {"steps": len(steps), "loss": steps[-1]["loss"], "seconds_of_run": seconds}


def untrained(settings: Settings, folder: str) -> dict[str, Any]:
    """The teacher's own figures, and those of the student before training."""
    teacher, student = _measured(demo_model_folder("student"), settings, folder)
    return {"teacher": teacher, "base student": student}


def timed(settings: Settings, folder: str, short: str, overrides: list[str]) -> dict[str, Any]:
    """Seconds of each step of a run."""
    output = Path(folder) / "runs" / short
    steps = _run(settings, folder, output, overrides)
    shutil.rmtree(output)
    return {"step_seconds": [step["seconds"] for step in steps]}


def angles(settings: Settings) -> dict[str, Any]:
    import sparse

    torch.set_num_threads(1)  # beside runs that train
    return {"lines": list(sparse.lines_of_angles())}


@functools.cache
def rows(path: Path) -> data.StepPlan:
    """Of a file, as the demo's config tokenises them."""
    cfg = load_config(find_config(CONFIG))
    found, _ = data.prepare_rows(OmegaConf.create(_dataset(path)), config.instantiate(cfg.tokenizer), cfg.tokenizer)
    return data.StepPlan(found, batch_size=cfg.batch_size, shuffle=False)


def _dataset(path: Path) -> dict[str, str]:
    return {"_component_": "distill_tune.data.instruct", "source": str(path)}


def _common(settings: Settings, folder: str, output: Path) -> list[str]:
    dataset = json.dumps(_dataset(Path(folder) / ROWS))
    return [f"dataset={dataset}", f"output_dir={output}", f"device={settings.device}"]


def _run(settings: Settings, folder: str, output: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """The metrics of each step."""
    shutil.rmtree(output, ignore_errors=True)  # an interrupted run's
    main(["run", "kd_single_device", "--config", CONFIG, *overrides, *_common(settings, folder, output)])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _measured(model: Path, settings: Settings, folder: str) -> list[dict[str, float]]:
    """The demo's teacher and a model."""
    folders = {"teacher": demo_model_folder("teacher"), "student": model}
    found = figures(folders, _dataset(Path(folder) / HELD_OUT), torch.device(settings.device))
    return list(map(_told, found.values()))


def _told(found: Figures) -> dict[str, float]:
    return {"cross_entropy": math.log(found.perplexity), "kl": found.kl, "agreement": found.agreement}
