"""run.json: what metrics and config of a run do not tell those who look at it."""

import contextlib
import json
from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch import nn

from distill_tune.data import StepPlan
from distill_tune.data.prepare import source_of
from distill_tune.data.shape import Shape
from distill_tune.disk import write_text
from distill_tune.secrets import hide_secrets
from distill_tune.teachers import Teacher
from distill_tune.training.device import describe_device
from distill_tune.training.distributed import is_main_process, num_ranks
from distill_tune.training.preparation import Models, Steps
from distill_tune.training.run_folder import RunFolder, recipe_name
from distill_tune.versions import versions


def write_facts(
    run: RunFolder, cfg: DictConfig, device: torch.device, built: Models, steps: Steps, done: int = 0
) -> None:
    """Write run.json as training begins; the main process alone. A disk that refuses it does not end the run.

    Args:
        built: with the student's final ``requires_grad``.
        done: steps that were taken before, of a run that goes on.
    """
    if not is_main_process():
        return
    name, memory = describe_device(device)
    facts = {
        "recipe": recipe_name(),
        "total_steps": steps.total_steps,
        "steps_per_epoch": steps.steps_per_epoch,
        "resumed_from": done or None,
        "device": name,
        "device_memory_bytes": memory,
        "processes": num_ranks(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "student_parameters": _count(built.student.parameters()),
        "trained_parameters": _count(weight for weight in built.student.parameters() if weight.requires_grad),
        "teacher_parameters": _parameters_of(built.teacher) or None,
        "data": _told("dataset", cfg.dataset, steps.plan),
        "data_val": _told("dataset_val", cfg.get("dataset_val"), steps.plan_val) if steps.plan_val else [],
    }
    with contextlib.suppress(OSError):
        write_text(run.facts, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)  # of a sharded one all of it


def _parameters_of(teacher: Teacher) -> int:
    """Of all teachers; 0 of those that are stored or served."""
    return sum(one.num_parameters for one, _ in teacher.each(Shape((), ())))


def _told(key: str, entries: DictConfig | ListConfig, plan: StepPlan) -> list[dict[str, Any]]:
    several = isinstance(entries, ListConfig)
    return [
        {
            "name": f"{key}[{number}]" if several else key,
            "source": hide_secrets(source_of(entry)),
            "rows": len(rows),
            "tokens": len(rows.tokens),
            "supervised_tokens": int(rows.supervised.sum()),
            "fingerprint": rows.fingerprint,
        }
        for number, (entry, rows) in enumerate(zip(entries if several else [entries], plan.datasets, strict=True))
    ]
