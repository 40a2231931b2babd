"""Folders as runs leave them, without a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

HEADER = "# distill-tune run kd_single_device --config tiny\n# distill-tune 0.1.0, torch 2.13.0, Python 3.11.7\n"
CONFIG = {
    "output_dir": "out",
    "model": {"_component_": "distill_tune.models.from_hf", "path": "small"},
    "teacher_model": {"_component_": "distill_tune.models.from_hf", "path": "large"},
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 2e-3},
    "kd_ratio": 0.9,
    "clip_grad_norm": 1.0,
    "epochs": 1,
}


def line(step: int, **figures: Any) -> dict[str, Any]:
    """A step of a healthy run: losses fall, gradients shrink."""
    kd_loss, ce_loss = 1.0 + 4 / (1 + step / 20), 3.0 + 2 / (1 + step / 20)
    return {
        "step": step,
        "epoch": 0,
        "loss": 0.1 * ce_loss + 0.9 * kd_loss,
        "ce_loss": ce_loss,
        "kd_loss": kd_loss,
        "kd_ratio": 0.9,
        "temperature": 1.0,
        "hidden_loss_weight": 0.0,
        "lr": 2e-3 * max(0.0, 1 - step / 1000),
        "grad_norm": 1.0 + 0.1 * (step % 5),
        "applied": True,
        "tokens": 2000,
        "total_tokens": 2000 * step,
        "supervised_tokens": 1000,
        "tokens_per_second": 4000.0,
        "supervised_tokens_per_second": 2000.0,
        "peak_memory_bytes": 2**30,
        "seconds": 0.5,
    } | figures


def write_run(
    folder: Path,
    steps: int | Sequence[Mapping[str, Any]] = 100,
    *,
    config: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """
    Args:
        steps: lines of metrics.jsonl, or how many of a healthy run.
        config: keys that are others.
        facts: run.json; None writes none.
    """
    lines = [line(step) for step in range(1, steps + 1)] if isinstance(steps, int) else steps
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(HEADER + yaml.safe_dump(CONFIG | dict(config or {}), sort_keys=False))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if facts is not None:
        (folder / "run.json").write_text(json.dumps(facts))
    if finished:
        (folder / "finished.json").write_text(json.dumps({"step": len(lines)}))
    return folder
