"""`distill-tune compare --config`: students beside a run's own teacher, on its own rows."""

import argparse
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import config, evaluation, training
from distill_tune.cli.held_out import dataset_of, make_no_more, named_as_given
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe, is_model_folder, local_path, model_at
from distill_tune.config.values import needs_teacher
from distill_tune.errors import UserError
from distill_tune.evaluation.named_models import BEFORE, TEACHER
from distill_tune.training.preparation import reading_of


def prepare_run(options: argparse.Namespace) -> tuple[evaluation.Prepared, torch.device]:
    """The config's teacher, its student before training, and each folder, with the rows that they are to read.

    Raises:
        UserError: before any weight is read: what a run tells; no rows to measure on; no teacher, or one that follows
            the student; a folder whose model does not read the rows.
    """
    recipes = [name for name in options.folders if name.endswith(".py")]
    named = [name for name in options.folders if name not in recipes]
    if len(recipes) > 1:
        raise UserError(f"compare: {' and '.join(recipes)}: name one recipe")
    recipe = find_recipe(recipes[0] if recipes else "kd_single_device")
    cfg = checked_config(recipe, options.config, list(filter(_is_override, named)), "all")
    if not needs_teacher(cfg):
        raise UserError("kd_ratio=0: this run has no teacher to compare with; name folders without --config")
    paths = _folders(named, cfg)
    with named_as_given(options):
        dataset = dataset_of(options) if options.source or options.dataset else cfg.get("dataset_val")
    if dataset is None:
        raise UserError("dataset_val: missing; compare measures on its rows; add it, or name some (--source)")
    for entry in dataset if isinstance(dataset, ListConfig) else [dataset]:
        if options.rows:
            make_no_more(entry, options.rows)
    device = training.find_device(cfg.device)
    tokenizer = config.build("tokenizer", cfg.tokenizer)
    labels = evaluation.labels_of(paths, taken=(TEACHER, BEFORE))
    others = [(label, path, "compare") for label, path in zip(labels, paths, strict=True)]
    opened, teacher, base = evaluation.open_models(cfg, device, tokenizer, others)
    with named_as_given(options):
        prepared = evaluation.prepare(
            opened,
            dataset,
            tokenizer,
            teacher=teacher,
            base=base,
            prompts=reading_of(cfg, ()),
            key="dataset" if options.source or options.dataset else "dataset_val",
            context=getattr(tokenizer, "max_seq_len", None),
            most=options.rows,
        )
    return prepared, device


def _is_override(argument: str) -> bool:
    return "=" in argument or (argument.startswith("~") and "/" not in argument)


def _folders(named: list[Any], cfg: DictConfig) -> list[str]:
    """
    Raises:
        UserError: there is none, or one is no model's.
    """
    found = [name for name in dict.fromkeys(named) if not _is_override(name)]
    if not found:
        if not is_model_folder(model_at(local_path(cfg.output_dir))):
            raise UserError(f"compare: output_dir={cfg.output_dir} has no model/ yet; name the folders to compare")
        return [cfg.output_dir]
    for path in found:
        evaluation.require_model("compare", path)
    return found
