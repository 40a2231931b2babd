"""Shipped configs on the demo's models, in bf16, three steps each, through the command."""

import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from distill_tune.cli.main import main
from distill_tune.config.files import find_config
from distill_tune.data import docstring_rows
from first_hour.outcome import NotMeasured, Settings

STEPS = 3
MOST_OFF = 1e-3  # of two runs' losses in bf16, whose sums a GPU may add in another order


def single_device(settings: Settings, name: str) -> dict[str, Any]:
    with _folder(settings) as folder:
        if name == "signals/gguf_teacher":
            raise NotMeasured("needs a GGUF file and the folder that it was made from")
        if name == "signals/teacher_of_each_row":
            _write_rows_of_two_teachers(folder / "rows.json")
        if name == "signals/served_teacher":
            with _served(settings) as url:
                return _run(name, settings, folder / "out", f"teacher_model.url={url}")
        more = []
        if name == "signals/earlier_checkpoint":
            _run("tiny/tiny", settings, folder / "before")
            more = [f"teacher_model.path=before/checkpoints/step_{STEPS}"]
        return _run(name, settings, folder / "out", *more)


def stored(
    settings: Settings, kind: str, *, name: str = "tiny/tiny", teacher: Sequence[str] = (), both: Sequence[str] = ()
) -> dict[str, Any]:
    """A run that fills a cache, and one that reads it with no teacher at hand: the same losses.

    Args:
        teacher: settings of the live teacher.
        both: settings of both runs.
    """
    both = [*both, "batch_size=4", f"dataset.num_rows={4 * STEPS}"]  # steps read all rows, which the cache has then
    with _folder(settings) as folder:
        filling = _run(name, settings, folder / "filling", *both, *teacher, "teacher_cache=cache", f"cache.kind={kind}")
        cached = "teacher_model={_component_: distill_tune.teachers.Cached, path: cache}"
        reading = _run(name, settings, folder / "reading", *both, cached)
        off = max(abs(a / b - 1) for a, b in zip(filling["losses"], reading["losses"], strict=True))
        if off > MOST_OFF:
            raise RuntimeError(f"losses of {filling['losses']} where the cache is filled, {reading['losses']} from it")
        return reading | {"off": off}


def _run(name: str, settings: Settings, output: Path, *more: str) -> dict[str, Any]:
    main(["run", "kd_single_device", "--config", name, *_overrides(name, settings, str(output)), *more])
    return _figures(output)


@contextlib.contextmanager
def _served(settings: Settings):
    """The address of the demo's teacher on the device, behind a server of its own."""
    if not importlib.util.find_spec("uvicorn"):
        raise NotMeasured("needs uvicorn and starlette")
    command = [sys.executable, "-um", "distill_tune", "serve", "--config", "tiny", "--port", "0"]
    command.append(f"device={settings.device}")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            told = next((line for line in process.stdout if "http://" in line), "")
            yield re.search(r"http://[^\s,]+", told)[0]
        finally:
            process.send_signal(signal.SIGINT)


def distributed(settings: Settings, name: str, processes: int | None = None) -> dict[str, Any]:
    """``processes``: None for every GPU."""
    count = [] if processes is None else ["--nproc_per_node", str(processes)]
    with _folder(settings) as folder:
        command = ["run", *count, "kd_distributed", "--config", name, *_overrides(name, settings, "out")]
        command = [sys.executable, "-m", "distill_tune", *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"status {done.returncode}")
        return _figures(folder / "out")


@contextlib.contextmanager
def _folder(settings: Settings):
    folder = settings.folder / "config"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)


def _overrides(name: str, settings: Settings, output: str) -> list[str]:
    few = ["batch_size=4"] if settings.small else []
    dataset = yaml.safe_load(find_config(name).read_text())["dataset"]
    parts = (
        [(f"dataset.{n}", d) for n, d in enumerate(dataset)] if isinstance(dataset, list) else [("dataset", dataset)]
    )
    if settings.small:  # collecting a thousand rows takes longer than the steps
        few += [f"{key}.num_rows=32" for key, component in parts if "num_rows" in component]
    steps = ["epochs=1", f"max_steps_per_epoch={STEPS}"]
    return [f"output_dir={output}", f"device={settings.device}", "dtype=bf16", *steps, *few]


def _write_rows_of_two_teachers(path: Path) -> None:
    rows = docstring_rows.collect(64, held_out=False, min_characters=30)
    path.write_text(json.dumps([row | {"teacher_id": ("large", "small")[n % 2]} for n, row in enumerate(rows)]))


def _figures(output: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    values = [line[key] for line in lines for key in ("loss", "grad_norm")]
    if len(lines) != STEPS or not all(value is not None and math.isfinite(value) for value in values):
        raise RuntimeError(f"not {STEPS} steps with finite losses and gradients: {values}")
    if not all(line["applied"] and line["grad_norm"] > 0 for line in lines):
        raise RuntimeError("a step was not applied, or had no gradient")
    return {
        "losses": [line["loss"] for line in lines],
        "seconds": lines[-1]["seconds"],
        "peak_bytes": max(line["peak_memory_bytes"] for line in lines),
    }
