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
from omegaconf import OmegaConf

from distill_tune import cache, config, data, evaluation
from distill_tune.cli.main import main
from distill_tune.cli.model_folder import ModelFolder
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config

CONFIG = "cached_teacher"


def made(settings: Settings, folder: str, short: str, overrides: list[str], num_rows: int) -> dict[str, Any]:
    """A cache; its bytes a supervised token, and how many distinct tokens it has of each."""
    path = Path(folder) / "caches" / short
    shutil.rmtree(path, ignore_errors=True)  # an interrupted run's
    overrides = [*overrides, f"dataset.num_rows={num_rows}", f"output_dir={path}", f"device={settings.device}"]
    main(["run", "teacher_cache", "--config", CONFIG, *overrides])
    reader = cache.CacheReader(path)
    figures = {"bytes": reader.manifest.num_bytes / reader.manifest.num_positions, "distinct": None}
    if reader.manifest.kind != cache.HiddenEncoding.kind:
        plan = rows(num_rows, held_out=False)
        digests = [digest for step in range(plan.steps_per_epoch) for digest in plan.digests(0, step)]
        record = reader.encoding.decode(reader.rows(digests))
        figures["distinct"] = record.is_token.sum(-1).float().mean().item()
    return figures


def trained(
    settings: Settings, folder: str, short: str, overrides: list[str], held_out: int, until: float | None
) -> dict[str, Any]:
    """A run's figures on held-out rows.

    Args:
        until: of ``time.time``; later none is begun.
    """
    if until and time.time() > until:
        raise NotMeasured("no time was left")
    output = Path(folder) / "runs" / short
    started = time.perf_counter()
    steps = _run(settings, output, overrides)
    seconds = time.perf_counter() - started
    _, comparison = _measured(output / "model", settings.device, held_out)
    shutil.rmtree(output)
    return _figures(comparison) | {"steps": len(steps), "loss": steps[-1]["loss"], "seconds_of_run": seconds}


def untrained(settings: Settings, held_out: int) -> dict[str, Any]:
    """The teacher's own figures, and those of the student before training."""
    teacher, student = _measured(demo_model_folder("student"), settings.device, held_out)
    return {"teacher": _figures(teacher), "base student": _figures(student)}


def timed(settings: Settings, folder: str, short: str, overrides: list[str]) -> dict[str, Any]:
    """Seconds of each step of a run."""
    output = Path(folder) / "runs" / short
    steps = _run(settings, output, overrides)
    shutil.rmtree(output)
    return {"step_seconds": [step["seconds"] for step in steps]}


def angles(settings: Settings) -> dict[str, Any]:
    import sparse

    torch.set_num_threads(1)  # beside runs that train
    return {"lines": list(sparse.lines_of_angles())}


@functools.cache
def rows(num_rows: int, *, held_out: bool) -> data.StepPlan:
    """Of docstrings, as the demo's config tokenises them."""
    cfg = load_config(find_config(CONFIG))
    dataset = OmegaConf.merge(cfg.dataset, {"num_rows": num_rows, **({"held_out": True} if held_out else {})})
    found, _ = data.prepare_rows(dataset, config.instantiate(cfg.tokenizer), cfg.tokenizer)
    return data.StepPlan(found, batch_size=cfg.batch_size, shuffle=False)


def _run(settings: Settings, output: Path, overrides: list[str]) -> list[dict[str, Any]]:
    """The metrics of each step."""
    shutil.rmtree(output, ignore_errors=True)  # an interrupted run's
    overrides = [*overrides, f"output_dir={output}", f"device={settings.device}"]
    main(["run", "kd_single_device", "--config", CONFIG, *overrides])
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _measured(model: Path, device_name: str, num_rows: int) -> list[evaluation.Comparison]:
    """The demo's teacher and a model, both in fp32, so that no difference is rounding."""
    device = torch.device(device_name)
    folders = {"teacher": demo_model_folder("teacher"), "student": model}
    teacher, student = (ModelFolder.open(path).entrant(name, device, torch.float32) for name, path in folders.items())
    return list(evaluation.compare(teacher, [student], list(rows(num_rows, held_out=True).epoch()), device))


def _figures(found: evaluation.Comparison) -> dict[str, float]:
    return {"cross_entropy": math.log(found.perplexity), "kl": found.kl, "agreement": found.agreement}
