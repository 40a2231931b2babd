"""Checks of plain values: types, ranges, choices, paths; all without importing anything heavy."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

Check = Callable[[Any], str | None]


def _integer(least: int, *, optional: bool = False) -> Check:
    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            return f"must be a whole number of at least {least}{' or null' if optional else ''}"
        return None

    return check


def _number(least: float, most: float = float("inf"), *, positive: bool = False, optional: bool = False) -> Check:
    def check(value: Any) -> str | None:
        if value is None and optional:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        if is_number and least <= value <= most and (value > 0 or not positive):
            return None
        if positive:
            return "must be a number above 0" + (" or null" if optional else "")
        return f"must be a number from {least:g} to {most:g}" if most < float("inf") else f"must be at least {least:g}"

    return check


def _warm_up(value: Any) -> str | None:
    if _integer(0)(value) is None or (isinstance(value, float) and 0 < value < 1):
        return None
    return "must be a whole number of steps, or a share of the run's, below 1"


def _choice(*choices: str) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def _list_of(*choices: str) -> Check:
    def check(value: Any) -> str | None:
        if isinstance(value, ListConfig) and all(item in choices for item in value):
            return None
        return f"must be a list of {', '.join(choices)}"

    return check


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be True or False"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be text"


def _day(value: Any) -> str | None:
    try:
        if value is not None:
            date.fromisoformat(value)
    except (TypeError, ValueError):
        return "must be a day, as 2026-03-01, or null for today"
    return None


def _dtype(value: Any) -> str | None:
    if value == "fp16":
        return "is not supported: gradients underflow in fp16 without loss scaling; take bf16 or fp32"
    return _choice("bf16", "fp32")(value)


def _device(value: Any) -> str | None:
    kind, _, index = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind in ("cpu", "cuda", "mps", "auto") and (not index or index.isdigit()):
        return None
    return "must be cpu, cuda, cuda:N, mps or auto (the fastest that is there)"


def _output_dir(value: Any) -> str | None:
    if fault := _text(value):
        return fault
    for folder in (Path(value), *Path(value).parents):
        if os.path.exists(folder) and not os.path.isdir(folder):
            return f"cannot be made: {folder} is a file"
    return None


def _resume(value: Any) -> str | None:
    if value is None or isinstance(value, bool) or value == "auto":
        return None
    return _folder(value) if isinstance(value, str) else "must be auto, True, False or a folder checkpoints/step_N"


def _folder(value: Any) -> str | None:
    return None if isinstance(value, str) and os.path.isdir(value) else "no such folder"


def _or_schedule(check: Check) -> Check:
    def checked(value: Any) -> str | None:
        if isinstance(value, DictConfig) and _component(value) is None:
            return None  # its values are checked once the run's length is known
        fault = check(value)
        return f"{fault}, or a schedule, {{_component_: distill_tune.training.Linear, ...}}" if fault else None

    return checked


def _template(value: Any) -> str | None:
    if isinstance(value, str) and "{" in value and "}" in value:
        return None
    return "must be text with {input} where the row's own prompt goes, or the name of another column in braces"


def _component(value: Any) -> str | None:
    if isinstance(value, DictConfig) and isinstance(value.get("_component_"), str):
        return None
    return "must be a component: a mapping whose _component_ names what to call"


def _components(value: Any) -> str | None:
    if not isinstance(value, ListConfig):
        return _component(value)
    if not value:
        return "is an empty list"
    return next((fault for entry in value if (fault := _component(entry))), None)


def _teachers(value: Any) -> str | None:
    if fault := _components(value):
        return fault
    if isinstance(value, ListConfig):
        names = [str(entry.get("name", number)) for number, entry in enumerate(value)]
        if len(set(names)) < len(names):
            return "two teachers have one name"
    return None


def _datasets(value: Any) -> str | None:
    if not isinstance(value, ListConfig):
        return _component(value)
    if not value:
        return "is an empty list"
    weighted = sum(isinstance(entry, DictConfig) and "weight" in entry for entry in value)
    if 0 < weighted < len(value):
        return "give every dataset in the list a weight, or none"
    return next((fault for entry in value if (fault := _component(entry))), None)


def _list_of_components(value: Any) -> str | None:
    return _components(value) if isinstance(value, ListConfig) else "must be a list of components"


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


CHECKS: dict[str, Check] = {
    "augmentations": _optional(_list_of_components),
    "batch_size": _integer(1, optional=True),
    "batch_size_val": _integer(1, optional=True),
    "checkpointer": _optional(_component),
    "clip_grad_norm": _number(0, positive=True, optional=True),
    "collective_timeout_seconds": _number(1),
    "compile": _flag,
    "custom_sharded_layers": _optional(_list_of("tok_embeddings", "output")),
    "data_parallel_replicate_dim": _integer(1),
    "dataset": _datasets,
    "dataset_temperature": _number(0, positive=True, optional=True),
    "dataset_val": _optional(_datasets),
    "date": _day,
    "device": _device,
    "dtype": _dtype,
    "enable_activation_checkpointing": _flag,
    "enable_activation_offloading": _flag,
    "epochs": _integer(1),
    "fsdp_cpu_offload": _flag,
    "fsdp_reshard_after_forward": _flag,
    "gradient_accumulation_steps": _integer(1),
    "hidden_loss": _optional(_component),
    "kd_loss": _component,
    "kd_ratio": _or_schedule(_number(0, 1)),
    "kd_token_weight": _optional(_component),
    "keep_best": _optional(_choice("val_loss", "val_ce_loss", "val_kd_loss")),
    "keep_last_n": _integer(1, optional=True),
    "log_every_n_steps": _integer(1, optional=True),
    "log_peak_memory_stats": _flag,
    "loss": _component,
    "lr_scheduler": _optional(_component),
    "max_bad_steps": _integer(1),
    "max_steps_per_epoch": _integer(1, optional=True),
    "max_tokens_per_batch": _integer(1, optional=True),
    "metric_logger": _optional(_component),
    "model": _component,
    "on_bad_row": _choice("stop", "skip"),
    "optimizer": _component,
    "output_dir": _output_dir,
    "resume": _resume,
    "resume_from_checkpoint": _resume,
    "resume_with_changes": _flag,
    "run_val_every_n_steps": _integer(1, optional=True),
    "save_adapter_weights_only": _flag,
    "save_every_n_steps": _integer(1, optional=True),
    "seed": _integer(0, optional=True),
    "shuffle": _flag,
    "student_prompt_template": _optional(_template),
    "teacher_checkpointer": _optional(_components),
    "teacher_combination": _choice("mixture", "sum", "by_row"),
    "teacher_dtype": _optional(_dtype),
    "teacher_max_seq_len": _integer(1, optional=True),
    "teacher_model": _optional(_teachers),
    "teacher_offload": _flag,
    "teacher_prompt_template": _optional(_template),
    "teacher_quantizer": _optional(_component),
    "teacher_system_prompt": _optional(_text),
    "temperature": _or_schedule(_number(0, positive=True)),
    "temperature_squared": _flag,
    "tokenizer": _component,
}

# Arguments that name files, wherever a component has them.
_OF_A_MODEL = ("config.json", "adapter_config.json")
_FILES = ("path", "merges_file", "vocab_path", "merges_path", "special_tokens_path")
MOST_LAYERS = 10_000
_POSITIVE = ("lora_rank", "lora_alpha", "max_seq_len")


def check_values(config: DictConfig) -> list[str]:
    """Faults of the values that are there, as ``key=value: what it must be``."""
    faults = []
    for key, check in CHECKS.items():
        if key in config and (fault := check(config[key])):
            faults.append(f"{key}={_shown(config[key])}: {fault}")
    for name, component in components_of(config):
        faults += _argument_faults(name, component)
    faults += _nameless_components(config)
    if config.get("enable_activation_offloading") is True:
        if config.get("enable_activation_checkpointing") is not True:
            faults.append("enable_activation_offloading=True: needs enable_activation_checkpointing=True")
        if config.get("device") in ("cpu", "mps"):
            faults.append(f"enable_activation_offloading=True: needs device=cuda, device is {config['device']}")
    if config.get("max_tokens_per_batch") is not None and config.get("batch_size") is not None:
        tokens = config["max_tokens_per_batch"]
        faults.append(f"max_tokens_per_batch={tokens}: takes the place of batch_size; set batch_size=null as well")
    if config.get("max_tokens_per_batch") is None and config.get("batch_size", 1) is None:
        faults.append("batch_size=null: needs max_tokens_per_batch")
    ratio = config.get("kd_ratio", 0.5)
    needs_teacher = ratio != 0 or config.get("hidden_loss") is not None
    if needs_teacher and config.get("teacher_model") is None:
        why = "hidden_loss" if ratio == 0 else f"kd_ratio={ratio}" if isinstance(ratio, int | float) else "kd_ratio"
        faults.append(f"teacher_model: missing; {why} needs a teacher (kd_ratio=0 trains without one)")
    for key in ("model", "teacher_model") if needs_teacher else ("model",):
        checkpointer, given = key.replace("model", "checkpointer"), config.get(key)
        for model in given if isinstance(given, ListConfig) else [given]:
            if isinstance(model, DictConfig) and not _knows_its_weights(model) and config.get(checkpointer) is None:
                faults.append(f"{checkpointer}: missing; {model.get('_component_')} does not know its folder")
    if config.get("teacher_quantizer") is not None and config.get("teacher_offload") is True:
        faults.append("teacher_offload=True: streams plain weights alone; leave teacher_quantizer out")
    faults += _without_effect(config)
    hidden_loss = config.get("hidden_loss")
    if isinstance(hidden_loss, DictConfig) and hidden_loss.get("positions") == "all":
        for key in _PROMPT_KEYS:
            if config.get(key) is not None:
                faults.append(f"hidden_loss.positions=all: {key} has teacher and student read different rows")
    return faults


def _without_effect(config: DictConfig) -> Iterator[str]:
    """Settings that nothing would heed beside the others."""
    teacher = config.get("teacher_model")
    if config.get("teacher_combination") is not None and isinstance(teacher, DictConfig):
        yield f"teacher_combination={config['teacher_combination']}: teacher_model names one teacher; give a list"
    if config.get("dataset_temperature") is not None and isinstance(config.get("dataset"), DictConfig):
        yield f"dataset_temperature={config['dataset_temperature']}: dataset names one dataset; give a list"
    if config.get("keep_best") is not None and config.get("dataset_val") is None:
        yield f"keep_best={config['keep_best']}: there is no dataset_val to measure it on"
    if config.get("resume_from_checkpoint") and config.get("resume") is not None:
        told = f"resume_from_checkpoint={config['resume_from_checkpoint']}"
        yield f"{told}: resume={config['resume']} means the same; keep one"
    kind = str(teacher.get("_component_", "")) if isinstance(teacher, DictConfig) else ""
    for key in ("teacher_quantizer", "teacher_offload"):
        if config.get(key) and kind.startswith(_KINDS_OF_TEACHER):
            yield f"{key}: {kind} does not heed it; it is for models"


_KINDS_OF_TEACHER = "distill_tune.teachers."
_PROMPT_KEYS = ("student_prompt_template", "teacher_prompt_template", "teacher_system_prompt", "teacher_max_seq_len")


def _knows_its_weights(model: DictConfig) -> bool:
    return "path" in model or str(model.get("_component_", "")).startswith(_KINDS_OF_TEACHER)


def components_of(
    node: DictConfig | ListConfig, prefix: str = "", itself: bool = False
) -> Iterator[tuple[str, DictConfig]]:
    """(dotted key, component) for every mapping below ``node`` that has a ``_component_``; with ``node`` if asked."""
    if itself and isinstance(node, DictConfig) and "_component_" in node:
        yield prefix, node
    items = node.items() if isinstance(node, DictConfig) else enumerate(node)
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, DictConfig) and isinstance(value.get("_component_"), str):
            yield name, value
        if isinstance(value, DictConfig | ListConfig):
            yield from components_of(value, f"{name}.")


def _nameless_components(node: Any, prefix: str = "") -> Iterator[str]:
    """Below the top level, whose own checks tell it."""
    items = node.items() if isinstance(node, DictConfig) else enumerate(node) if isinstance(node, ListConfig) else ()
    for key, value in items:
        if prefix and isinstance(value, DictConfig) and not isinstance(value.get("_component_", ""), str):
            yield f"{prefix}{key}._component_={_shown(value['_component_'])}: must be the dotted name of what to call"
        yield from _nameless_components(value, f"{prefix}{key}.")


def _argument_faults(name: str, component: DictConfig) -> Iterator[str]:
    for key in _POSITIVE:
        value = component.get(key)
        if isinstance(value, int | float) and value <= 0:
            yield f"{name}.{key}={value}: must be above 0"
    layers = component.get("num_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        yield f"{name}.num_layers={_shown(layers)}: must be at most {MOST_LAYERS}"
    if name == "lr_scheduler" and (fault := _warm_up(component.get("num_warmup_steps", 0))):
        yield f"{name}.num_warmup_steps={component['num_warmup_steps']}: {fault}"
    if name.startswith("tokenizer"):
        for key in _FILES:
            if isinstance(component.get(key), str) and not os.path.exists(component[key]):
                yield f"{name}.{key}={component[key]}: no such file"
        path = component.get("path")
        if isinstance(path, str) and os.path.isdir(path) and component["_component_"].startswith("torchtune."):
            yield (
                f"{name}.path={path}: is a folder, {component['_component_']} reads a file, such as tokenizer.model; "
                "distill_tune.data.hf_tokenizer reads folders"
            )
    is_model = re.fullmatch(r"model|teacher_model(\.\d+)?", name) is not None
    path = component.get("path") if is_model else None
    if isinstance(path, str) and path.endswith(".gguf"):
        if not os.path.isfile(path):
            yield f"{name}.path={path}: no such file"
        elif name == "model":
            yield f"{name}.path={path}: a GGUF file can be a teacher; a student needs a Hugging Face model folder"
    elif str(component["_component_"]).endswith(".EarlierCheckpoint") and isinstance(path, str):
        if not os.path.isfile(os.path.join(path, "state.json")):
            yield f"{name}.path={path}: no checkpoint of a run; name a folder checkpoints/step_N"
    elif isinstance(path, str) and not any(os.path.isfile(os.path.join(path, name)) for name in _OF_A_MODEL):
        yield f"{name}.path={path}: no such folder, or it has no config.json; name a Hugging Face model folder"
    folder = component.get("checkpoint_dir")
    if isinstance(folder, str):
        if not os.path.isdir(folder):
            yield f"{name}.checkpoint_dir={folder}: no such folder"
        else:
            yield from _missing_checkpoint_files(name, Path(folder), component.get("checkpoint_files"))
    weight = component.get("weight")
    if weight is not None and name.startswith(("dataset", "teacher_model")) and _number(0, positive=True)(weight):
        yield f"{name}.weight={weight}: must be a number above 0"


def _missing_checkpoint_files(name: str, folder: Path, files: Any) -> Iterator[str]:
    if isinstance(files, ListConfig):
        for file in files:
            if not os.path.isfile(folder / str(file)):
                yield f"{name}.checkpoint_files: {folder / str(file)}: no such file"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
