"""`distill-tune validate`: every check of a run, without the run."""

import argparse
import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill_tune.cli.run import num_processes_asked, parse_config, torchrun_options
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, find_recipe, folders_of_own_modules
from distill_tune.config.load import load_config
from distill_tune.config.missing_files import MissingFile
from distill_tune.config.recipe_keys import Recipe
from distill_tune.config.trust import is_known, outside
from distill_tune.errors import CollectedFaults, Faults, FinishedRun, UserError
from distill_tune.sizes import binary

_DESCRIPTION = """Check what a run checks before it loads a weight: keys, values, components, paths, shapes, rows.

  distill-tune validate [RECIPE] --config CONFIG [overrides]
  distill-tune validate --nproc_per_node 2 kd_distributed --config CONFIG [overrides]

Without RECIPE the config is checked for kd_single_device. Models are built without their weights, and their parameters
(all, and those that train) and the memory for their weights are printed, for each process where there are several.
Rows of local files are read and tokenised, and kept in the cache of rows for the run; nothing is fetched from the hub.
Nothing is trained, no file is written beside, and no code from outside the packages that this one is made for is run or
even imported: what a run would import besides is listed.
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


# What the steps before loading call: where one of these is from elsewhere, its group is not checked.
_OF_MODELS = ("model", "teacher_model", "tokenizer", "teacher_tokenizer", "optimizer", "lr_scheduler", "hidden_loss")
_OF_ANSWERS = ("model", "teacher_model", "tokenizer", "teacher_tokenizer", "sampling")
_OF_ROWS = ("dataset", "dataset_val", "augmentations", "kd_ratio", "temperature")
_LOSSES = ("loss", "kd_loss", "kd_token_weight")


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


def require_training(command: str, recipe: Path) -> None:
    """
    Raises:
        UserError: the recipe trains nothing.
    """
    if Recipe(recipe).reads_as:
        raise UserError(
            f"{command} {recipe.stem}: it trains nothing; name a recipe that does, or see what it is asked "
            f"with distill-tune validate {recipe.stem}"
        )


def _validate(options: argparse.Namespace) -> None:
    recipe, name, overrides, num_processes = read_arguments(list(options.arguments))
    cfg = validated(recipe, name, overrides, num_processes)
    if missing := missing_on_this_machine(cfg):
        print(f"not on this machine: {missing}")
    print(f"{name}: valid for {recipe.stem}" + (" on a machine that has it" if missing else ""))


def validated(recipe: Path, name: str, overrides: Sequence[str], num_processes: int) -> DictConfig:
    """A config that passes all checks but those of this machine; what they find besides faults is printed.

    Raises:
        UserError: with all faults.
    """
    path = find_config(name)
    where = f"config {path}" + (" and the command line" if overrides else "")
    of_config, of_parts = CollectedFaults(where), CollectedFaults(where)
    reads_as = Recipe(recipe).reads_as
    cfg = None
    with of_config:
        cfg = checked_config(recipe, name, overrides, "known")
    if cfg is None:
        cfg = load_config(path, overrides, is_known)
    if told := [*outside(cfg, folders_of_own_modules(recipe))]:
        print("a run would run code from elsewhere, which is not checked here:\n  " + "\n  ".join(told))
    if all(isinstance(fault, MissingFile) for fault in of_config):  # sizes need none
        _print_sizes(cfg, num_processes, trains=reads_as is None)
    keys = set(map(_key_in, of_config))
    try:
        if reads_as:
            (_prepare_answers if reads_as == "generate" else prepare_evaluation)(cfg, of_parts)
        else:
            _build_and_prepare(cfg, num_processes, of_parts)
    except Exception:
        if not keys:  # else it may follow from what is told
            raise
    further = dict.fromkeys(fault for fault in of_parts if _key_in(fault) not in keys)  # rows may be read twice
    if faults := [*of_config, *further]:
        raise Faults(where, faults)
    return cfg


def _key_in(fault: str) -> str:
    """The key at the top that a fault is about."""
    return re.split(r"\W", fault, maxsplit=1)[0]


def _build_and_prepare(cfg: DictConfig, num_processes: int, faults: CollectedFaults) -> None:
    """What a run does before it loads a weight, as far as it runs no code from elsewhere."""
    import torch

    from distill_tune import data, rollouts, training
    from distill_tune.config.components import build
    from distill_tune.config.trust import may_be_called

    for key in _LOSSES:
        if may_be_called(cfg.get(key)):
            with faults:
                build(key, cfg.get(key))
    with faults:
        _build_profiler(cfg.get("profiler"))
    checkpoint = state = built = steps = None
    with faults:
        try:
            _, _, checkpoint, state = training.open_run(cfg)
        except FinishedRun as told:
            print(told)
    training.use_day(cfg.get("date"), state, cfg.get("teacher_cache"))
    if _has_foreign(cfg, _OF_MODELS, "models and rows"):
        return
    with faults:
        built = training.build_models(cfg, torch.device("cpu"))
    if _has_foreign(cfg, _OF_ROWS, "rows"):
        return
    seed = state.seed if state and cfg.get("seed") is None else cfg.get("seed") or 0
    with faults, data.local_files_alone(), contextlib.suppress(data.RowsOnHub):
        steps = training.plan_steps(cfg, built, seed, num_processes) if built else None
        if built and steps:
            for line in training.describe_others(built.tokenizer, built.teacher.other_tokenizers, steps.plan.datasets):
                print(line)
        if built and steps and may_be_called(cfg.get("rollouts")):
            rollouts.build_rows(cfg, built, steps, seed)
    with faults:
        if built is None or steps is None:
            _read_rows(cfg, built.teacher.names if built else (), faults)
        elif checkpoint and state:
            state.require_same_plan(checkpoint, steps.identity_with(built), cfg.get("resume_with_changes", False))


def _prepare_answers(cfg: DictConfig, faults: CollectedFaults) -> None:
    """As :func:`_build_and_prepare`, for the recipe generate."""
    import torch

    from distill_tune import config, data, training

    date = cfg.get("date")
    with faults:
        _, made = training.find_answers(cfg.output_dir)
        date = date or (made and made.date)
    training.use_day(date)
    if _has_foreign(cfg, (*_OF_ANSWERS, "dataset"), "models and rows"):
        return
    with faults, data.local_files_alone():
        try:
            tokenizer = config.build("tokenizer", cfg.tokenizer)
            training.prepare_answers(cfg, torch.device("cpu"), tokenizer, runs=False)
        except data.RowsOnHub as told:
            print(f"dataset: {told}: its rows are checked by the run, before it loads a model")


def prepare_evaluation(cfg: DictConfig, faults: CollectedFaults) -> None:
    """As :func:`_build_and_prepare`, for the recipe evaluate."""
    import torch

    from distill_tune import config, data, evaluation, training

    training.use_day(cfg.get("date"))
    if _has_foreign(cfg, (*_OF_ANSWERS, "dataset_test", "dataset_val"), "models and documents"):
        return
    with faults, data.local_files_alone():
        try:
            tokenizer = config.build("tokenizer", cfg.tokenizer)
            prepared = evaluation.prepare_evaluation(cfg, torch.device("cpu"), tokenizer)
            evaluation.sampling_of(cfg)
            print(prepared.documents.told())
        except data.RowsOnHub as told:
            print(f"dataset_test: {told}: its rows are checked by the run, before it loads a model")


def _build_profiler(component: DictConfig | None) -> None:
    """With another folder, since it makes its own."""
    from distill_tune import training
    from distill_tune.config.trust import is_known

    if component is not None and is_known(component["_component_"]):
        with tempfile.TemporaryDirectory() as folder:
            training.build_profiler(OmegaConf.create({**component, "output_dir": folder}))


def _read_rows(cfg: DictConfig, teacher_names: Sequence[str], faults: CollectedFaults) -> None:
    """Each dataset by itself, where no steps can be made of them all."""
    from distill_tune import config, data
    from distill_tune.training.preparation import reading_of

    tokenizer, reading = config.build("tokenizer", cfg.tokenizer), reading_of(cfg, teacher_names)
    for key, of_key in (("dataset", reading), ("dataset_val", reading.with_answers)):
        with faults, data.local_files_alone():
            try:
                if cfg.get(key) is not None:
                    on_bad_row = cfg.get("on_bad_row", "stop")
                    with contextlib.redirect_stdout(io.StringIO()):  # what is told of rows has been told
                        data.prepare_rows(
                            cfg[key], tokenizer, cfg.tokenizer, key=key, on_bad_row=on_bad_row, reading=of_key
                        )
            except data.RowsOnHub as told:
                print(f"{key}: {told}: its rows are checked by the run, before it loads a model")


def missing_on_this_machine(cfg: DictConfig) -> str | None:
    """What a run here would be refused for, and another machine may have: the device, its dtype, a compiler."""
    from distill_tune import models, training

    try:
        device = training.find_device(cfg.device)
        training.find_dtype(cfg.dtype, device)
        if cfg.get("compile", False):
            models.check_compiler(device)
    except UserError as error:
        return str(error)
    return None


def _has_foreign(cfg: DictConfig, keys: tuple[str, ...], what: str) -> bool:
    """Whether a component of ``keys`` is from elsewhere; then a line says what is not checked."""
    from distill_tune.config.trust import may_be_called

    foreign = [key for key in keys if not may_be_called(cfg.get(key))]
    if foreign:
        print(f"{', '.join(foreign)}: would run code from elsewhere, so {what} are checked by the run alone")
    return bool(foreign)


def _models_of(cfg: DictConfig) -> Iterator[tuple[str, DictConfig, DictConfig | None]]:
    """Key, component and checkpointer of the student and of each teacher."""
    from distill_tune.teachers.build import entries_of

    if cfg.get("model") is not None:  # which the recipe generate can do without
        yield "model", cfg.model, cfg.get("checkpointer")
    if cfg.get("teacher_model") is not None:
        for key, entry, checkpointer in entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer")):
            yield key, entry.component, checkpointer


def _print_sizes(cfg: DictConfig, num_processes: int, trains: bool) -> None:
    """A line for each model that can be built."""
    import torch

    from distill_tune import models, training
    from distill_tune.config.components import instantiate
    from distill_tune.config.trust import may_be_called
    from distill_tune.teachers.build import is_kind_of_teacher
    from distill_tune.training.writers import is_server

    dtype = torch.bfloat16 if cfg.dtype == "bf16" else torch.float32
    for key, component, _ in _models_of(cfg):
        try:
            if not may_be_called(component):
                print(f"{key}: {component['_component_']}, not built")
                continue
            if is_kind_of_teacher(component) or is_server(component):
                instantiate(component)
                print(f"{key}: {component['_component_']}")
                continue
            model = models.build_on_meta(key, component, dtype)
            if key == "model" and trains:
                models.freeze_all_but_adapters(model, training.dtype_to_train_in(cfg.optimizer, dtype, model))
        except UserError:  # told by what comes after
            continue
        copies = int(cfg.get("data_parallel_replicate_dim") or 1)
        shards = max(1, num_processes // copies) if trains else 1
        print(f"{key}: {_size(model, trains=trains and key == 'model', shards=shards)}")


def _size(model: Any, *, trains: bool, shards: int) -> str:
    from distill_tune import models

    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad) if trains else 0
    num_bytes = sum(map(models.num_bytes, model.parameters()))
    each = f", {binary(num_bytes / shards)} on each of {shards} processes" if shards > 1 else ""
    return f"{total:,} parameters, {trainable:,} trainable, {binary(num_bytes)} for weights{each}"
