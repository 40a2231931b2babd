"""The teacher that a config names: a model beside its checkpoint, a kind of teacher, or a list of them."""

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune import models
from distill_tune.config.components import ENTRY_KEYS, find_component, instantiate
from distill_tune.errors import UserError
from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.load import require_quantizer
from distill_tune.teachers.several import SeveralTeachers
from distill_tune.teachers.teacher import Teacher


def build_teacher(
    component: DictConfig | ListConfig | None,
    checkpointer: DictConfig | ListConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    combination: str = "mixture",
    quantizer: DictConfig | None = None,
    offload: bool = False,
    needs_weights: bool = True,
    key: str = "teacher_model",
) -> Teacher:
    """
    Args:
        component: ``teacher_model``: a model, a subclass of :class:`Teacher`, or a list of such, each with an optional
            ``weight`` and ``name``; None for no teacher, whose signal is None.
        checkpointer: ``teacher_checkpointer``, of a list one each; not needed by models that are built from a folder.
        dtype: in which models run.
        combination: of a list; see :class:`SeveralTeachers`.
        quantizer, offload: of each model; see :func:`~distill_tune.teachers.load.load_quantised_or_streamed`.
        needs_weights: see :func:`~distill_tune.models.open_checkpoint`.
        key: that names it in the config.

    Raises:
        UserError: a model does not fit its checkpoint.
    """

    if component is None:
        return Teacher()
    if quantizer is not None and needs_weights:
        require_quantizer(quantizer)
    teachers, weights, names = [], [], []
    for name, entry, entry_checkpointer in entries_of(component, checkpointer, key):
        if is_kind_of_teacher(entry.component):
            teacher = instantiate(entry.component)
            teacher.dtype = dtype
        else:
            checkpoint = models.open_checkpoint(name, entry.component, entry_checkpointer, needs_weights)
            model = models.checked_on_meta(name, entry.component, checkpoint, dtype)
            teacher = LiveTeacher(model, checkpoint, quantizer=quantizer, offload=offload)
        teachers.append(teacher)
        weights.append(entry.weight)
        names.append(entry.name)
    if isinstance(component, DictConfig):
        return teachers[0]
    return SeveralTeachers(teachers, weights, names, combination)


class Entry(NamedTuple):
    """One of the teachers that a config names."""

    component: DictConfig
    weight: float
    name: str


def entries_of(
    component: DictConfig | ListConfig, checkpointer: DictConfig | ListConfig | None, key: str = "teacher_model"
) -> Iterator[tuple[str, Entry, DictConfig | None]]:
    """Key, teacher and checkpointer of ``teacher_model``, be it a list or not.

    Raises:
        UserError: not as many checkpointers as teachers.
    """
    if isinstance(component, DictConfig):
        if isinstance(checkpointer, ListConfig):
            raise UserError("teacher_checkpointer: is a list, and teacher_model is not")
        yield key, _entry(component, 0), checkpointer
        return
    checkpointers = [None] * len(component) if checkpointer is None else checkpointer
    if not isinstance(checkpointers, Sequence) or len(checkpointers) != len(component):
        raise UserError(f"teacher_checkpointer: teacher_model is a list of {len(component)}: give a list of as many")
    for number, (entry, of_entry) in enumerate(zip(component, checkpointers, strict=True)):
        yield f"{key}.{number}", _entry(entry, number), of_entry


def _entry(entry: DictConfig, number: int) -> Entry:
    plain = OmegaConf.create({name: value for name, value in entry.items() if name not in ENTRY_KEYS["teacher_model"]})
    return Entry(plain, float(entry.get("weight", 1.0)), str(entry.get("name", number)))


def is_kind_of_teacher(component: DictConfig) -> bool:
    """Whether a component is a subclass of :class:`Teacher`, not a model."""
    target = find_component(component["_component_"])
    return inspect.isclass(target) and issubclass(target, Teacher)
