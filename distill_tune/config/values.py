"""Checks of plain values, alone and beside each other; all without importing anything heavy."""

import importlib.util
import os
import re
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from distill_tune.config.files import is_model_folder, nearest
from distill_tune.config.keys import KEYS, fault_of, is_set
from distill_tune.config.kinds import ABOVE_0, WARM_UP, Kind, one_of, whole

# Arguments that name files, wherever a component has them.
_FILES = ("path", "merges_file", "vocab_path", "merges_path", "special_tokens_path")
MOST_LAYERS = 10_000
# What torchtune's loggers import when they are built.
_PACKAGES = {
    "WandBLogger": "wandb",
    "TensorBoardLogger": "tensorboard",
    "CometLogger": "comet_ml",
    "MLFlowLogger": "mlflow",
}
_POSITIVE = ("lora_rank", "lora_alpha", "max_seq_len")


def check_values(config: DictConfig, read_otherwise: Set[str] = frozenset()) -> list[str]:
    """Faults of the values that are there, as ``key=value: what it must be``.

    Args:
        read_otherwise: keys that a user's recipe reads in lines of its own, and may heed where ours do not.
    """
    faults = []
    for key in KEYS:
        if key in config and (fault := fault_of(key, config[key])):
            faults.append(f"{key}={_shown(config[key])}: {fault}")
    for name, component in components_of(config):
        faults += _argument_faults(name, component)
    faults += _nameless_components(config)
    if config.get("enable_activation_offloading") is True and config.get("device") in ("cpu", "mps"):
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
    faults += _faults_of_cache(config.get("cache"))
    faults += _without_effect(config, read_otherwise)
    hidden_loss = config.get("hidden_loss")
    if isinstance(hidden_loss, DictConfig) and hidden_loss.get("positions") == "all":
        for key in _PROMPT_KEYS:
            if config.get(key) is not None:
                faults.append(f"hidden_loss.positions=all: {key} has teacher and student read different rows")
    return faults


# Of the section `cache`: what each may be, and the kinds that heed it.
_CACHE: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "kind": (one_of("sampled", "top_k", "hidden"), ()),
    "draws": (whole(1), ("sampled",)),
    "proposal_temperature": (ABOVE_0, ("sampled",)),
    "k": (whole(1), ("top_k",)),
    "temperature": (ABOVE_0, ("sampled", "top_k")),
}


def _faults_of_cache(cache: Any) -> Iterator[str]:
    if not isinstance(cache, DictConfig):
        return
    if "kind" not in cache:
        yield f"cache.kind: missing; it {_CACHE['kind'][0].fault(None)}"
    for name, value in cache.items():
        if name not in _CACHE:
            near = nearest(str(name), _CACHE)
            yield f"cache.{name}: no such key, " + (f"did you mean {near[0]}?" if near else f"take {', '.join(_CACHE)}")
            continue
        kind, heeded_by = _CACHE[str(name)]
        if value is None and name != "kind":
            continue
        if fault := kind.fault(value):
            yield f"cache.{name}={_shown(value)}: {fault}"
        elif heeded_by and cache.get("kind") not in heeded_by:
            yield f"cache.{name}={value}: cache.kind={cache.get('kind')} does not heed it; leave it out"


def _without_effect(config: DictConfig, read_otherwise: Set[str]) -> Iterator[str]:
    """Settings that nothing would heed beside the others."""
    for key, entry in KEYS.items():
        is_heeded = not entry.beside or key in read_otherwise or any(config.get(name) for name in entry.beside)
        if not is_heeded and is_set(key, config.get(key)):
            yield f"{key}={_shown(config[key])}: nothing heeds it without {' or '.join(entry.beside)}; leave it out"
    teacher = config.get("teacher_model")
    kind = str(teacher.get("_component_", "")) if isinstance(teacher, DictConfig) else ""
    is_stored = kind == _STORED  # from this very config, with the teacher itself in it
    if config.get("teacher_combination") is not None and isinstance(teacher, DictConfig) and not is_stored:
        yield f"teacher_combination={config['teacher_combination']}: teacher_model names one teacher; give a list"
    if config.get("dataset_temperature") is not None and isinstance(config.get("dataset"), DictConfig):
        yield f"dataset_temperature={config['dataset_temperature']}: dataset names one dataset; give a list"
    if config.get("resume_from_checkpoint") and config.get("resume") is not None:
        told = f"resume_from_checkpoint={config['resume_from_checkpoint']}"
        yield f"{told}: resume={config['resume']} means the same; keep one"
    for key in ("teacher_quantizer", "teacher_offload"):
        if config.get(key) and kind.startswith(_KINDS_OF_TEACHER) and not is_stored:
            yield f"{key}: {kind} does not heed it; it is for models"


_KINDS_OF_TEACHER = "distill_tune.teachers."
_STORED = "distill_tune.teachers.Cached"
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
    package = _PACKAGES.get(component["_component_"].removeprefix("torchtune.training.metric_logging."))
    if package and importlib.util.find_spec(package) is None:
        yield f"{name}: {component['_component_']} needs the package {package}; pip install {package}"
    layers = component.get("num_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        yield f"{name}.num_layers={_shown(layers)}: must be at most {MOST_LAYERS}"
    if name == "lr_scheduler" and (fault := WARM_UP.fault(component.get("num_warmup_steps", 0))):
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
    elif component["_component_"] == _STORED and isinstance(path, str):
        if not os.path.isfile(os.path.join(path, "manifest.json")):
            yield (
                f"{name}.path={path}: no cache of a teacher; make one from this config with its teacher: "
                f"distill-tune run teacher_cache --config ... cache.kind=sampled output_dir={path}"
            )
    elif str(component["_component_"]).endswith(".EarlierCheckpoint") and isinstance(path, str):
        if not os.path.isfile(os.path.join(path, "state.json")):
            yield f"{name}.path={path}: no checkpoint of a run; name a folder checkpoints/step_N"
    elif isinstance(path, str) and not is_model_folder(path):
        yield f"{name}.path={path}: no such folder, or it has no config.json; name a Hugging Face model folder"
    folder = component.get("checkpoint_dir")
    if isinstance(folder, str):
        if not os.path.isdir(folder):
            yield f"{name}.checkpoint_dir={folder}: no such folder"
        else:
            yield from _missing_checkpoint_files(name, Path(folder), component.get("checkpoint_files"))
    weight = component.get("weight")
    if weight is not None and name.startswith(("dataset", "teacher_model")) and (fault := ABOVE_0.fault(weight)):
        yield f"{name}.weight={weight}: {fault}"


def _missing_checkpoint_files(name: str, folder: Path, files: Any) -> Iterator[str]:
    if isinstance(files, ListConfig):
        for file in files:
            if not os.path.isfile(folder / str(file)):
                yield f"{name}.checkpoint_files: {folder / str(file)}: no such file"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
