"""The teacher that a config names: a model beside its checkpoint, a kind of teacher, or a list of them."""

import inspect
from collections.abc import Sequence

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune import models
from distill_tune.config.components import find_component, instantiate
from distill_tune.errors import UserError
from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.several import SeveralTeachers
from distill_tune.teachers.teacher import Teacher

# Keys of an entry in a list of teachers that are not its component's.
ENTRY_KEYS = ("name", "weight")


def build_teacher(
    component: DictConfig | ListConfig | None,
    checkpointer: DictConfig | ListConfig | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    combination: str = "mixture",
    quantizer: DictConfig | None = None,
    offload: bool = False,
) -> Teacher:
    """
    Args:
        component: ``teacher_model``: a model, a subclass of :class:`Teacher`, or a list of such, each with an optional
            ``weight`` and ``name``; None for no teacher, whose signal is None.
        checkpointer: ``teacher_checkpointer``, of a list one each; not needed by models that are built from a folder.
        dtype: in which models run.
        combination: of a list; see :class:`SeveralTeachers`.
        quantizer, offload: of each model; see :func:`~distill_tune.teachers.load.load_quantised_or_streamed`.

    Raises:
        UserError: a model does not fit its checkpoint.
    """

    def one(key: str, entry: DictConfig, entry_checkpointer: DictConfig | None) -> Teacher:
        target = find_component(entry["_component_"])
        plain = OmegaConf.create({name: value for name, value in entry.items() if name not in ENTRY_KEYS})
        if inspect.isclass(target) and issubclass(target, Teacher):
            teacher = instantiate(plain)
            teacher.dtype = dtype
            return teacher
        checkpoint = models.Checkpoint.of(key, plain, entry_checkpointer)
        model = models.checked_on_meta(key, plain, checkpoint, dtype)
        return LiveTeacher(model, checkpoint, quantizer=quantizer, offload=offload)

    if component is None:
        return Teacher()
    if isinstance(component, DictConfig):
        if isinstance(checkpointer, ListConfig):
            raise UserError("teacher_checkpointer: is a list, and teacher_model is not")
        return one("teacher_model", component, checkpointer)
    checkpointers = _one_each(checkpointer, len(component))
    teachers = [
        one(f"teacher_model.{number}", entry, entry_checkpointer)
        for number, (entry, entry_checkpointer) in enumerate(zip(component, checkpointers, strict=True))
    ]
    weights = [float(entry.get("weight", 1.0)) for entry in component]
    names = [str(entry.get("name", number)) for number, entry in enumerate(component)]
    return SeveralTeachers(teachers, weights, names, combination)


def _one_each(checkpointer: DictConfig | ListConfig | None, count: int) -> Sequence[DictConfig | None]:
    if checkpointer is None:
        return [None] * count
    if not isinstance(checkpointer, ListConfig) or len(checkpointer) != count:
        raise UserError(f"teacher_checkpointer: teacher_model is a list of {count}: give a list of as many")
    return list(checkpointer)
