"""`distill-tune validate`: every check of a run, without the run."""

import argparse
from collections.abc import Iterator
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
Nothing is trained, nothing is written, and no code from outside the packages that this one is made for is run or even
imported: what a run would import besides is listed.
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


# Small components, whose own checks tell what is wrong with their arguments.
_BUILT_EARLY = ("loss", "kd_loss", "kd_token_weight", "hidden_loss")


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
    from distill_tune.config.trust import outside

    if told := list(outside(cfg)):
        print("a run would run code from elsewhere, which is not checked here:\n  " + "\n  ".join(told))
    _check_with_components(cfg, name, num_processes)
    print(f"{name}: valid for {recipe.stem}")


def _check_with_components(cfg: DictConfig, name: str, num_processes: int) -> None:
    """The checks that import what the config names."""
    from distill_tune.config.components import build, check_components
    from distill_tune.config.trust import may_be_called

    if faults := check_components(cfg, only_known=True):
        raise Faults(f"config {find_config(name)}", faults)

    from distill_tune import models

    faults = []
    entries = {key: (component, checkpointer) for key, component, checkpointer in _models_of(cfg)}
    for key, model in _print_sizes(cfg, num_processes, faults).items():
        try:
            models.check_fit(key, model, models.Checkpoint.of(key, *entries[key]))
        except UserError as error:
            faults.append(str(error))
    losses = [(key, cfg.get(key)) for key in _BUILT_EARLY]
    for key, component in [*losses, *(("augmentations", entry) for entry in cfg.get("augmentations") or [])]:
        if not may_be_called(component):
            continue
        try:
            build(key, component)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise Faults(f"config {find_config(name)}", faults)


def _models_of(cfg: DictConfig) -> Iterator[tuple[str, DictConfig, DictConfig | None]]:
    """Key, component and checkpointer of the student and of each teacher."""
    from distill_tune.teachers.build import entries_of

    yield "model", cfg.model, cfg.get("checkpointer")
    if cfg.get("teacher_model") is not None:
        for key, entry, checkpointer in entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer")):
            yield key, entry.component, checkpointer


def _print_sizes(cfg: DictConfig, num_processes: int, faults: list[str] | None = None) -> dict[str, Any]:
    """A line for each model that can be built, and the models; ``faults`` collects why others cannot."""
    import torch

    from distill_tune import models, training
    from distill_tune.config.components import instantiate
    from distill_tune.config.trust import may_be_called
    from distill_tune.teachers.build import is_kind_of_teacher

    built = {}
    dtype = torch.bfloat16 if cfg.dtype == "bf16" else torch.float32
    for key, component, _ in _models_of(cfg):
        try:
            if not may_be_called(component):
                print(f"{key}: {component['_component_']}, not built")
                continue
            if is_kind_of_teacher(component):
                instantiate(component)
                print(f"{key}: {component['_component_']}")
                continue
            model = models.build_on_meta(key, component, dtype)
            if key == "model":
                models.freeze_all_but_adapters(model, training.dtype_to_train_in(cfg.optimizer, dtype, model))
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

    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if trains else 0
    num_bytes = sum(map(models.num_bytes, model.parameters()))
    each = f", {filesize.decimal(int(num_bytes / shards))} on each of {shards} processes" if shards > 1 else ""
    return f"{total:,} parameters, {trainable:,} trainable, {filesize.decimal(int(num_bytes))} for weights{each}"
