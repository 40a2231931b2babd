"""`distill-tune validate`: every check of a run, without the run."""

import argparse
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill_tune.cli.run import num_processes_asked, parse_config, torchrun_options
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, find_recipe
from distill_tune.config.load import load_config
from distill_tune.errors import Faults, UserError

_DESCRIPTION = """Check a config: every key, every component's arguments, every value, paths and shapes.

  distill-tune validate [RECIPE] --config CONFIG [overrides]
  distill-tune validate --nproc_per_node 2 kd_distributed --config CONFIG [overrides]

Without RECIPE the config is checked for kd_single_device. Models are built without their weights, and their parameters
(all, and those that train) and the memory for their weights are printed, for each process where there are several.
Nothing is trained, nothing is written.
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "validate",
        help="check a config without running it",
        description=_DESCRIPTION,
        usage="distill-tune validate [torchrun options] [RECIPE] --config CONFIG [key=value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_validate)


def read_arguments(arguments: list[str]) -> tuple[Path, str, list[str], int]:
    """(recipe, config, overrides, number of processes) of ``[torchrun options] [RECIPE] --config CONFIG [overrides]``.

    Raises:
        UserError: no such recipe, or no config.
    """
    num_processes = 1
    if arguments and arguments[0].startswith("--") and not arguments[0].startswith("--config"):
        torchrun = torchrun_options(arguments)
        num_processes = num_processes_asked(torchrun)
        arguments = [torchrun.training_script, *torchrun.training_script_args]
    names_recipe = bool(arguments) and not arguments[0].startswith("-") and "=" not in arguments[0]
    recipe = find_recipe(arguments[0] if names_recipe else "kd_single_device")
    name, overrides = parse_config(arguments[1:] if names_recipe else arguments)
    return recipe, name, overrides, num_processes


def _validate(options: argparse.Namespace) -> None:
    recipe, name, overrides, num_processes = read_arguments(list(options.arguments))
    try:
        cfg = checked_config(recipe, name, overrides)
    except Faults as error:
        if all("no such" in fault and "key" not in fault for fault in error.faults):  # nothing but missing files
            _print_sizes(load_config(find_config(name), overrides), num_processes)
        raise
    _check_with_components(cfg, name, num_processes)
    print(f"{name}: valid for {recipe.stem}")


def _check_with_components(cfg: DictConfig, name: str, num_processes: int) -> None:
    """The checks that import what the config names."""
    from distill_tune.config.components import check_components

    if faults := check_components(cfg):
        raise Faults(f"config {find_config(name)}", faults)

    from distill_tune import models

    faults = []
    for key, model in _print_sizes(cfg, num_processes, faults).items():
        try:
            checkpointer = cfg.get("checkpointer" if key == "model" else "teacher_checkpointer")
            models.check_fit(key, model, models.Checkpoint.of(key, cfg[key], checkpointer))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise Faults(f"config {find_config(name)}", faults)


def _print_sizes(cfg: DictConfig, num_processes: int, faults: list[str] | None = None) -> dict[str, Any]:
    """A line for each model that can be built, and the models; ``faults`` collects why others cannot."""
    import torch

    from distill_tune import models

    built = {}
    for key in ("model", "teacher_model"):
        if cfg.get(key) is None:
            continue
        try:
            model = models.build_on_meta(key, cfg[key], torch.bfloat16 if cfg.dtype == "bf16" else torch.float32)
        except UserError as error:
            if faults is not None:
                faults.append(str(error))
            continue
        built[key] = model
        copies = int(cfg.get("data_parallel_replicate_dim") or 1)
        print(f"{key}: {_size(model, trains=key == 'model', shards=max(1, num_processes // copies))}")
    return built


def _size(model: Any, *, trains: bool, shards: int) -> str:
    from rich import filesize

    from distill_tune import models

    models.freeze_all_but_adapters(model)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if trains else 0
    num_bytes = sum(map(models.num_bytes, model.parameters()))
    each = f", {filesize.decimal(int(num_bytes / shards))} on each of {shards} processes" if shards > 1 else ""
    return f"{total:,} parameters, {trainable:,} trainable, {filesize.decimal(int(num_bytes))} for weights{each}"
