"""`distill-tune compare --config`: students beside a run's own teacher, on its own rows."""

import argparse
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import data, evaluation, training
from distill_tune.cli.held_out import dataset_of, make_no_more, require_num_rows, tell_rows
from distill_tune.cli.model_folder import ModelFolder, require_models, short_name
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe, local_path
from distill_tune.config.values import needs_teacher
from distill_tune.errors import UserError
from distill_tune.teachers import (
    EMA,
    BaseModel,
    Cached,
    EarlierCheckpoint,
    HuggingFace,
    Served,
    SeveralTeachers,
    Teacher,
)
from distill_tune.training.preparation import Models, reading_of

_TEACHER, _BASE = "teacher", "base student"


def compare_run(options: argparse.Namespace) -> tuple[list[Any], int]:
    """A :class:`~distill_tune.evaluation.Comparison` of the config's teacher, its student before training, and of each
    folder, and on how many rows.

    Raises:
        UserError: before any weight is read: what a run tells; no rows to measure on; no teacher, or one that follows
            the student; a folder whose model does not read the rows.
    """
    require_num_rows(options)
    recipes = [name for name in options.folders if name.endswith(".py")]
    options.folders = [name for name in options.folders if name not in recipes]
    if len(recipes) > 1:
        raise UserError(f"compare: {' and '.join(recipes)}: name one recipe")
    recipe = find_recipe(recipes[0] if recipes else "kd_single_device")
    cfg = checked_config(recipe, options.config, list(filter(_is_override, options.folders)), "all")
    if not needs_teacher(cfg):
        raise UserError("kd_ratio=0: this run has no teacher to compare with; name folders without --config")
    folders = _folders(options, cfg)
    dataset = dataset_of(options) if options.source or options.dataset else cfg.get("dataset_val")
    if dataset is None:
        raise UserError("dataset_val: missing; compare measures on its rows; add it, or name some (--source)")
    device = training.find_device(cfg.device)
    built = training.build_models(cfg, device, with_cache=False)
    if isinstance(built.teacher, EMA | BaseModel | EarlierCheckpoint):
        raise UserError(f"teacher_model: {type(built.teacher).__name__} follows the student; name folders to compare")
    if isinstance(built.teacher, SeveralTeachers) and built.teacher.other_tokenizers:
        raise UserError(
            "teacher_model: compare has one distribution from all teachers, and these have several tokenizers"
        )
    for one, _ in built.teacher.each(data.Shape((), ())):
        if isinstance(one, Cached):
            raise UserError(
                "teacher_model: Cached knows no rows but its own; name the teacher itself to compare with it"
            )
        if isinstance(one, Served) and one.kind != "hidden":
            raise UserError(f"teacher_model.kind={one.kind}: compare needs whole distributions; take kind=hidden")
    base = ModelFolder.open(built.student_checkpoint.folder)
    opened = {_BASE: base} | {short_name(folder, folders): ModelFolder.open(folder) for folder in folders}
    plan = _plan(cfg, built, dataset, options.rows)
    writer = getattr(built.tokenizer, "folder", base.checkpoint.folder)
    for folder in opened.values():
        folder.require_rows(writer, plan)
    dtype = training.find_dtype(cfg.dtype, device)
    others = [folder.entrant(name, device, dtype) for name, folder in opened.items()]
    sizes = [folder.vocab_size for folder in opened.values()]
    common = min([*sizes, built.common_vocab_size or sizes[0]])
    comparisons = evaluation.compare(_teacher(built, device), others, list(plan.epoch()), device, common)
    return list(comparisons), plan.num_rows


def _is_override(argument: str) -> bool:
    return "=" in argument or (argument.startswith("~") and "/" not in argument)


def _folders(options: argparse.Namespace, cfg: DictConfig) -> list[Path]:
    named = [local_path(folder) for folder in dict.fromkeys(options.folders) if not _is_override(folder)]
    if not named:
        named = [local_path(cfg.output_dir) / "model"]
        if not named[0].is_dir():
            raise UserError(f"compare: output_dir={cfg.output_dir} has no model/ yet; name the folders to compare")
    require_models(named)
    return named


def _plan(cfg: DictConfig, built: Models, dataset: Any, num_rows: int | None) -> data.StepPlan:
    for entry in dataset if isinstance(dataset, ListConfig) else [dataset]:
        if num_rows:
            make_no_more(entry, num_rows)
    rows, _ = data.prepare_rows(
        dataset,
        built.tokenizer,
        cfg.tokenizer,
        on_bad_row="skip",
        reading=reading_of(cfg, built.teacher.names, built.teacher.shares_tokenizer).with_answers,
        others=built.teacher.other_tokenizers,
    )
    rows = [of_dataset.first(num_rows) for of_dataset in rows] if num_rows else rows
    tell_rows("dataset_val", rows)
    size = cfg.get("batch_size_val") or cfg.batch_size
    most = cfg.get("max_tokens_per_batch") if size is None else None
    plan = data.StepPlan(rows, batch_size=size, max_tokens_per_batch=most, shuffle=False)
    built.teacher.require_rows(plan.longest_of_teacher, plan.used_tokens)
    if built.teacher.other_tokenizers:
        built.teacher.require_signals(rows, False)
    return plan


def _teacher(built: Models, device: Any) -> evaluation.Entrant:
    parameters = sum(p.numel() for model in built.teacher.models for p in model.parameters())
    for one, _ in built.teacher.each(data.Shape((), ())):
        parameters += one.num_parameters if isinstance(one, HuggingFace) else 0

    def load() -> Teacher:
        built.teacher.load(built.student, device)
        return built.teacher

    return evaluation.Entrant(_TEACHER, parameters, _TEACHER, load)
