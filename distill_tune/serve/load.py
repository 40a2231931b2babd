"""The teacher of a server, as a config names it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig

from distill_tune.config.check import checked_config
from distill_tune.config.components import find_component
from distill_tune.config.files import find_config, find_recipe
from distill_tune.config.load import load_config
from distill_tune.config.missing_files import MissingFile
from distill_tune.errors import Faults, UserError
from distill_tune.teachers.build import build_teacher, entries_of, is_kind_of_teacher
from distill_tune.teachers.hf import HuggingFace
from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.several import SeveralTeachers

AnyTeacher = LiveTeacher | HuggingFace | SeveralTeachers


def config_of_teacher(name: str, overrides: Sequence[str]) -> DictConfig:
    """A config whose teacher can be served here; its student, tokenizer and rows need not be here.

    Raises:
        UserError: with all other faults; it has no teacher, or one that is no model.
    """
    try:
        cfg = checked_config(find_recipe("kd_single_device"), name, overrides, "all")
    except Faults as error:
        others = [fault for fault in error.faults if not (isinstance(fault, MissingFile) and not _is_teachers(fault))]
        if others:
            raise Faults(f"config {find_config(name)}", others) from error
        cfg = load_config(find_config(name), overrides, lambda name: True)
    if cfg.get("teacher_model") is None:
        raise UserError(f"config {find_config(name)}: teacher_model: missing; there is nothing to serve")
    combination = cfg.get("teacher_combination", "mixture")
    if isinstance(cfg.teacher_model, ListConfig) and combination != "mixture":
        raise UserError(
            f"teacher_combination={combination}: each teacher has a word of its own; serve each by itself, and list "
            "them as teacher_model of the run, each distill_tune.teachers.Served"
        )
    for key, entry, _ in entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer")):
        name = entry.component["_component_"]
        if is_kind_of_teacher(entry.component) and find_component(name) is not HuggingFace:
            raise UserError(f"{key}._component_={name}: is no model of its own; serve one that is")
    return cfg


def _is_teachers(fault: MissingFile) -> bool:
    return fault.startswith(("teacher_model", "teacher_checkpointer"))


def teacher_of(cfg: DictConfig, dtype: torch.dtype) -> AnyTeacher:
    """The teacher of such a config, without weights.

    Raises:
        UserError: it cannot be built, or does not fit its checkpoint.
    """
    teacher = build_teacher(
        cfg.teacher_model,
        cfg.get("teacher_checkpointer"),
        dtype=dtype,
        quantizer=cfg.get("teacher_quantizer"),
        offload=cfg.get("teacher_offload", False),
    )
    assert isinstance(teacher, AnyTeacher)
    return teacher


def name_of(cfg: DictConfig) -> str:
    """Of the folders or files of its teachers' weights; where they have none, of their components."""
    found = []
    for _, entry, checkpointer in entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer")):
        path = entry.component.get("path") or (checkpointer and checkpointer.get("checkpoint_dir"))
        found.append(Path(str(path)).name if path else str(entry.component["_component_"]))
    return " + ".join(found)


def settings_of(cfg: DictConfig) -> str:
    """What its teacher's word depends on beside its weights."""
    entries = entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer"))
    weights = [entry.weight for _, entry, _ in entries]
    quantizer = dict(cfg.get("teacher_quantizer") or {"_component_": None})
    told = f"{quantizer.pop('_component_')}" + (f"{quantizer}" if quantizer else "")
    return told if len(weights) == 1 else f"{told};{weights}"
