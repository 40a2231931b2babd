"""Tasks of EleutherAI's lm-eval, asked of models that are loaded already."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.errors import UserError
from distill_tune.evaluation.named_models import NamedModel
from distill_tune.evaluation.scoring import Reader

SHIPPED = Path(__file__).parent.parent / "_tasks"
_FEW_SHOT_SEED = 1234  # lm-eval's own
_RESAMPLES = 1000  # of figures whose deviation has no formula; lm-eval's 100,000 take minutes


@dataclasses.dataclass(frozen=True)
class Tasks:
    """
    Attributes:
        names: as they were given.
        loaded: with their rows, as lm-eval's TaskManager gives them.
    """

    names: Sequence[str]
    loaded: Mapping[str, Any]

    def told(self) -> str:
        return ", ".join(self.loaded["tasks"])


def open_tasks(names: str | Sequence[str], folder: str | Path | None = None) -> Tasks:
    """Find tasks and read their rows.

    Args:
        names: of tasks, groups or tags, or paths of YAML files.
        folder: of YAML files whose tasks may be named, besides those that ship with distill-tune and with lm-eval;
            where a name is there, nothing else is read.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or its rows cannot be read.
    """
    names = [names] if isinstance(names, str) else list(names)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"tasks: {error}; pip install 'distill-tune[lm-eval]'") from error
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"task_folder={folder}: no such folder")
    local = [SHIPPED, *([Path(folder)] if folder is not None else [])]
    manager = TaskManager(include_path=local, include_defaults=False)
    unknown = [name for name in names if name not in manager.all_tasks and not Path(name).is_file()]
    if unknown:
        manager = TaskManager(include_path=local)
    tasks, groups = dict[str, Any](), dict[str, Any]()
    for name in names:
        if name in unknown and name not in manager.all_tasks:
            raise UserError(f"tasks={name}: no such task or file{did_you_mean(nearest(name, manager.all_tasks))}")
        try:
            found = manager.load([name])
        except Exception as error:  # a task is code of its author's, and its rows may be anywhere
            raise UserError(f"tasks={name}: cannot be loaded: {type(error).__name__}: {error}") from error
        tasks |= found["tasks"]
        groups |= found.get("groups", {})
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
    return Tasks(names, {"tasks": tasks, "groups": groups})


def task_figures(
    tasks: Tasks, model: NamedModel, reader: Reader, tokenizer: Any, device: torch.device, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """What a model reaches in each task. All ranks call it; each asks the model its share.

    Args:
        reader: of the loaded model.
        tokenizer: that writes what the model reads.
        limit: so many rows of each task, the first ones.

    Returns:
        by task, lm-eval's figures by their names, ``NAME_stderr`` where there is one, and ``documents``; the same on
        all ranks.

    Raises:
        UserError: a task that this model cannot be asked.
    """
    import lm_eval

    from distill_tune.evaluation.task_model import TaskModel

    asked = TaskModel(model, reader, tokenizer, device)
    found = lm_eval.evaluate(asked, tasks.loaded, limit=limit, bootstrap_iters=_RESAMPLES, log_samples=False)
    sizes = found.get("n-samples", {})
    return {task: _figures(figures, sizes.get(task)) for task, figures in found["results"].items()}


def _figures(found: Mapping[str, Any], sizes: Mapping[str, int] | None) -> dict[str, float]:
    """``acc,none`` becomes ``acc``; ``exact_match,strict-match`` becomes ``strict-match exact_match``."""
    figures = {}
    for key, value in found.items():
        name, comma, way = key.partition(",")
        if comma and isinstance(value, int | float) and math.isfinite(value):
            figures[name if way == "none" else f"{way} {name}"] = float(value)
    return figures | ({"documents": sizes["effective"]} if sizes else {})
