"""Tasks of EleutherAI's lm-eval, asked of models that are loaded already."""

import contextlib
import dataclasses
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import DictConfig

from distill_tune.config.files import local_path
from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.errors import UserError
from distill_tune.evaluation.named_models import NamedModel
from distill_tune.evaluation.scoring import Reader
from distill_tune.evaluation.significance import Measure, pairs
from distill_tune.evaluation.statistics import Array
from distill_tune.evaluation.task_chat import chat_template_of

SHIPPED = Path(__file__).parent.parent / "_tasks"
_FEW_SHOT_SEED = 1234  # lm-eval's own
_RESAMPLES = 1000  # of figures whose deviation has no formula; lm-eval's 100,000 take minutes


@dataclasses.dataclass(frozen=True)
class Tasks:
    """
    Attributes:
        loaded: with their rows, as lm-eval's TaskManager gives them; None where there are none.
        in_chat: they are asked as a user's turn, as a model's chat template writes it, and not as plain text.
    """

    loaded: Mapping[str, Any] | None = None
    in_chat: bool = False


@dataclasses.dataclass(frozen=True)
class Reached:
    """What a model reaches in a task.

    Attributes:
        figures: lm-eval's, by their names, ``NAME_stderr`` where there is one, and ``documents``.
        right: of figures that say of each row whether it is right, 1 or 0, by their names, ``[d]``.
    """

    figures: Mapping[str, float]
    right: Mapping[str, Array]


def tasks_of(cfg: DictConfig, tokenizer: Any) -> Tasks:
    """Those that a config names, with their rows.

    Args:
        tokenizer: the config's.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or its rows cannot be read; the tokenizer has no
            chat template, and is to ask in chat.
    """
    named, in_chat = cfg.get("tasks"), cfg.get("tasks_in_chat", False)
    if not named:
        return Tasks()
    if in_chat:
        chat_template_of("tokenizer", tokenizer)
    opened = open_tasks([named] if isinstance(named, str) else list(named), cfg.get("task_folder"))
    return dataclasses.replace(opened, in_chat=in_chat)


def open_tasks(names: Sequence[str], folder: str | None = None) -> Tasks:
    """Find tasks and read their rows.

    Args:
        names: of tasks, groups or tags, or paths of YAML files.
        folder: of YAML files whose tasks may be named, besides those that ship with distill-tune and with lm-eval.

    Raises:
        UserError: lm-eval is not installed, there is no such task, or its rows cannot be read.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"tasks: {error}; pip install 'distill-tune[lm-eval]'") from error
    local = [SHIPPED]
    if folder is not None:
        local.append(local_path(folder))
        if not local[-1].is_dir():
            raise UserError(f"task_folder={folder}: no such folder")
    with _quiet():
        manager = TaskManager(include_path=local, include_defaults=False)
        if any(name not in manager.all_tasks and not local_path(name).is_file() for name in names):
            manager = TaskManager(include_path=local)  # with lm-eval's own, which takes seconds
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}}
    for name in names:
        is_file = name not in manager.all_tasks and local_path(name).is_file()
        if name not in manager.all_tasks and not is_file:
            raise UserError(f"tasks={name}: no such task or file{did_you_mean(nearest(name, manager.all_tasks))}")
        try:
            with _quiet():
                found = manager.load([str(local_path(name)) if is_file else name])
        except Exception as error:  # a task is its author's own code, and its rows may be anywhere
            told = str(error).strip().splitlines() or [type(error).__name__]
            hint = "; a task over local files needs no network" if isinstance(error, ConnectionError) else ""
            raise UserError(f"tasks={name}: cannot be loaded: {type(error).__name__}: {told[0]}{hint}") from error
        for part, of_part in loaded.items():
            of_part |= found.get(part, {})
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_FEW_SHOT_SEED)
    return Tasks(loaded)


def reached(
    tasks: Tasks, model: NamedModel, reader: Reader, tokenizer: Any, device: torch.device
) -> dict[str, Reached]:
    """What a model reaches in each task and group. All ranks call it, each asks the model its share, all are told.

    Args:
        reader: of the loaded model.
        tokenizer: that writes what the model reads.

    Raises:
        UserError: a task asks for what this model cannot do.
    """
    if tasks.loaded is None:
        return {}
    import lm_eval

    from distill_tune.evaluation.task_model import TaskModel

    asked = TaskModel(model, reader, tokenizer, device)
    with _quiet():
        found = lm_eval.evaluate(
            asked,
            tasks.loaded,
            bootstrap_iters=_RESAMPLES,
            log_samples=True,
            apply_chat_template=tasks.in_chat,
            fewshot_as_multiturn=tasks.in_chat,
        )
    samples, sizes = found.get("samples") or {}, found.get("n-samples") or {}
    return {
        task: Reached(_figures(figures, sizes.get(task)), _right(samples.get(task, ())))
        for task, figures in found["results"].items()
    }


def _figures(found: Mapping[str, Any], sizes: Mapping[str, int] | None) -> dict[str, float]:
    figures: dict[str, float] = {}
    for key, value in found.items():
        name, comma, way = key.partition(",")
        if comma and isinstance(value, int | float) and math.isfinite(value):
            figures[_name(name, way)] = float(value)
    return figures | ({"documents": sizes["effective"]} if sizes else {})


def _name(metric: str, way: str) -> str:
    """
    Args:
        way: in which an answer is taken out of a text, as ``strict-match``; ``none`` where there is but one.
    """
    return metric if way == "none" else f"{way} {metric}"


def _right(samples: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    values: dict[str, dict[int, Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            values.setdefault(_name(metric, sample["filter"]), {})[sample["doc_id"]] = sample[metric]
    return {
        name: numpy.array([float(of[number]) for number in sorted(of)])
        for name, of in values.items()
        if all(isinstance(value, int | float) and value in (0, 1) for value in of.values())
    }


def task_figures(models: Mapping[str, Mapping[str, Reached]]) -> dict[str, dict[str, Mapping[str, float]]] | None:
    """The ``tasks`` of results.json: by task, of each model.

    Args:
        models: by label.
    """
    names = dict.fromkeys(name for of_model in models.values() for name in of_model)
    return {
        name: {label: of_model[name].figures for label, of_model in models.items() if name in of_model}
        for name in names
    } or None


def task_pairs(models: Mapping[str, Mapping[str, Reached]]) -> list[dict[str, Any]]:
    """Two models in the same rows of a task, as :func:`~distill_tune.evaluation.significance.pairs` has them."""
    columns: dict[str, dict[str, Array]] = {label: {} for label in models}
    measures = {}
    for label, of_model in models.items():
        for task, one in of_model.items():
            for metric, right in one.right.items():
                name = f"tasks.{task}.{metric}"
                columns[label] |= {name: right, f"{name}.documents": numpy.ones(len(right))}
                measures[name] = Measure(
                    name,
                    f"{name}.documents",
                    unit=f"points of {metric} in {task}",
                    shown=100,
                    more_is_better=True,
                    is_right_or_wrong=True,
                )
    return pairs(columns, measures=measures)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval tells at length what it does, in each process."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where its progress bars are drawn
            yield
    finally:
        logger.setLevel(level)
