"""`distill-tune validate`: every check of a run, without the run."""

import argparse
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill_tune.cli.run import parse_config
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, find_recipe
from distill_tune.errors import Faults, UserError

_DESCRIPTION = """Check a config: every key, every component's arguments, every value, paths and shapes.

  distill-tune validate [RECIPE] --config CONFIG [overrides]

Without RECIPE the config is checked for kd_single_device. Models are built without their weights, and their parameters
(all, and those that train) and the memory for their weights are printed. Nothing is trained, nothing is written.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "validate",
        help="check a config without running it",
        description=_DESCRIPTION,
        usage="distill-tune validate [RECIPE] --config CONFIG [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_validate)


def _validate(options: argparse.Namespace) -> None:
    arguments = list(options.arguments)
    names_recipe = bool(arguments) and not arguments[0].startswith("-") and "=" not in arguments[0]
    recipe = find_recipe(arguments.pop(0) if names_recipe else "kd_single_device")
    name, overrides = parse_config(arguments)
    cfg = checked_config(recipe, name, overrides)
    _check_with_components(cfg, find_config(name))
    print(f"{name}: valid for {recipe.stem}")


def _check_with_components(cfg: DictConfig, path: Path) -> None:
    """The checks that import what the config names."""
    from distill_tune.config.components import check_components

    if faults := check_components(cfg):
        raise Faults(f"config {path}", faults)

    from distill_tune import models

    faults = []
    for key in ("model", "teacher_model"):
        if cfg.get(key) is None:
            continue
        try:
            model = models.build_on_meta(key, cfg[key])
            print(f"{key}: {_size(key, model, cfg)}")
            checkpointer = cfg.get("checkpointer" if key == "model" else "teacher_checkpointer")
            models.check_fit(key, model, models.Checkpoint.of(key, cfg[key], checkpointer))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise Faults(f"config {path}", faults)


def _size(key: str, model: Any, cfg: DictConfig) -> str:
    from rich import filesize

    from distill_tune import models

    models.freeze_all_but_adapters(model)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if key == "model" else 0
    num_bytes = total * (2 if cfg.dtype == "bf16" else 4)
    return f"{total:,} parameters, {trainable:,} trainable, {filesize.decimal(num_bytes)} for weights in {cfg.dtype}"
