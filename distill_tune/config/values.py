"""Checks of plain values, alone and beside each other; all without importing anything heavy."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Set
from typing import Any

from omegaconf import DictConfig

from distill_tune.config.keys import KEYS
from distill_tune.config.kinds import ABOVE_0, WARM_UP, Kind, one_of, whole
from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.config.nodes import components_of, is_component, nodes_of

MOST_LAYERS = 10_000
# Of arguments, by name: of which keys' components, and what they may be; a type is told with the others of a signature.
_POSITIVE = Kind("above 0", lambda value: not isinstance(value, int | float) or value > 0)
_LAYERS = Kind(f"at most {MOST_LAYERS}", lambda value: not isinstance(value, int) or value <= MOST_LAYERS)
_ARGUMENTS: dict[str, tuple[str | tuple[str, ...], Kind]] = {
    "lora_rank": ("", _POSITIVE),
    "lora_alpha": ("", _POSITIVE),
    "max_seq_len": ("", _POSITIVE),
    "num_layers": ("", _LAYERS),
    "num_warmup_steps": ("lr_scheduler", WARM_UP),
    "weight": (("dataset", "teacher_model"), ABOVE_0.or_null()),
}
# What torchtune's loggers and ours import when they are built.
_LOGGERS = {"WandB": "wandb", "TensorBoard": "tensorboard", "Comet": "comet_ml", "MLFlow": "mlflow"}
_PACKAGES = {
    **{f"torchtune.training.metric_logging.{name}Logger": package for name, package in _LOGGERS.items()},
    "distill_tune.training.loggers.TrackioLogger": "trackio",
    "distill_tune.training.loggers.MLflowLogger": "mlflow",
}
_KINDS_OF_TEACHER = "distill_tune.teachers."
_STORED = f"{_KINDS_OF_TEACHER}Cached"
_SORTED = "distill_tune.losses.UniversalLogit"
_PROMPT_KEYS = ("student_prompt_template", "teacher_prompt_template", "teacher_system_prompt", "teacher_max_seq_len")

# Of the section `cache`: what each may be, and the kinds that heed it.
_CACHE: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "kind": (one_of("sampled", "top_k", "hidden", "likelihood"), ()),
    "draws": (whole(1).or_null(), ("sampled",)),
    "proposal_temperature": (ABOVE_0.or_null(), ("sampled",)),
    "k": (whole(1).or_null(), ("top_k",)),
    "temperature": (ABOVE_0.or_null(), ("sampled", "top_k", "likelihood")),
}


def check_values(config: DictConfig, read_otherwise: Set[str] = frozenset(), reads_as: str | None = None) -> list[str]:
    """Faults of the values that are there, as ``key=value: what it must be``.

    Args:
        read_otherwise: keys that a user's recipe reads in lines of its own, and may heed where ours do not.
        reads_as: ``generate`` or ``evaluate``, of recipes that train nothing.
    """
    # A key that is not there costs little: OmegaConf would look for others like it.
    given: dict[Any, Any] = dict(config)
    of_parts = (*_of_keys(given), *_of_cache(given.get("cache")), *_of_arguments(given))
    of_several = {"generate": _of_answers, "evaluate": _of_evaluation}.get(reads_as or "", _of_several)
    return [*of_parts, *of_several(given), *_without_effect(given, read_otherwise)]


def needs_teacher(config: Mapping[str, Any]) -> bool:
    """Whether the loss has a part that a teacher gives."""
    return config.get("kd_ratio", KEYS["kd_ratio"].default) != 0 or config.get("hidden_loss") is not None


def _of_keys(config: Mapping[str, Any]) -> Iterator[str]:
    for key in KEYS:
        if key in config and (fault := KEYS[key].values.fault(config[key])):
            yield f"{key}={_shown(config[key])}: {fault}"
    for key, node in nodes_of(config):
        # At the top level the table tells it.
        if "." in key and isinstance(node, DictConfig) and not isinstance(node.get("_component_", ""), str):
            yield f"{key}._component_={_shown(node['_component_'])}: must be the dotted name of what to call"


def _of_cache(cache: Any) -> Iterator[str]:
    if not isinstance(cache, DictConfig):
        return
    for name, value in {"kind": None, **cache}.items():
        if name not in _CACHE:
            near = did_you_mean(nearest(str(name), _CACHE), otherwise=f"; it has {', '.join(_CACHE)}")
            yield f"cache.{name}: no such key{near}"
        elif fault := _CACHE[str(name)][0].fault(value):
            yield f"cache.{name}={_shown(value)}: {fault}"
        elif (heeded_by := _CACHE[str(name)][1]) and value is not None and cache.get("kind") not in heeded_by:
            yield f"cache.{name}={value}: cache.kind={cache.get('kind')} does not heed it; leave it out (~cache.{name})"


def _of_arguments(config: Mapping[str, Any]) -> Iterator[str]:
    for key, component in components_of(config):
        name = component["_component_"]
        for argument, (keys, kind) in _ARGUMENTS.items():
            if argument in component and key.startswith(keys) and (fault := kind.fault(component[argument])):
                yield f"{key}.{argument}={_shown(component[argument])}: {fault}"
        if (package := _PACKAGES.get(name)) and importlib.util.find_spec(package) is None:
            yield f"{key}: {name} needs the package {package}; pip install {package}"


def _of_several(config: Mapping[str, Any]) -> Iterator[str]:
    """What one key's value asks of another's."""
    tokens, hidden_loss = config.get("max_tokens_per_batch"), config.get("hidden_loss")
    if config.get("enable_activation_offloading") is True and config.get("device") in ("cpu", "mps"):
        yield f"enable_activation_offloading=True: needs device=cuda, device is {config['device']}"
    if tokens is not None and config.get("batch_size") is not None:
        yield f"max_tokens_per_batch={tokens}: takes the place of batch_size; set batch_size=null as well"
    if tokens is None and config.get("batch_size", 1) is None:
        yield "batch_size=null: needs max_tokens_per_batch"
    if needs_teacher(config) and config.get("teacher_model") is None:
        ratio = config.get("kd_ratio", KEYS["kd_ratio"].default)
        why = "hidden_loss" if ratio == 0 else f"kd_ratio={_shown(ratio)}"
        yield f"teacher_model: missing; {why} needs a teacher (kd_ratio=0 trains without one)"
    if config.get("teacher_quantizer") is not None and config.get("teacher_offload") is True:
        yield "teacher_offload=True: streams plain weights alone; leave teacher_quantizer out"
    loss, ratio = config.get("kd_loss"), config.get("kd_ratio", KEYS["kd_ratio"].default)
    if ratio == 1 and isinstance(loss, DictConfig) and loss.get("_component_") == _SORTED:
        yield (
            f"kd_ratio={_shown(ratio)}: UniversalLogit compares sorted probabilities, which tell no token from "
            "another, and needs cross-entropy beside it; set it below 1, as kd_ratio=0.9"
        )
    if (stored := config.get("teacher_cache")) is not None:
        if hidden_loss is not None:
            yield f"teacher_cache={stored}: hidden_loss compares layers, whose states no cache has; leave one out"
        if config.get("rollouts") is not None:
            yield f"teacher_cache={stored}: no cache has what rollouts write while the student trains; leave one out"
        if os.path.abspath(str(stored)) == os.path.abspath(str(config.get("output_dir"))):
            yield f"teacher_cache={stored}: output_dir is the run's own folder; name another"
    if isinstance(hidden_loss, DictConfig) and hidden_loss.get("positions") == "all":
        for key in _PROMPT_KEYS:
            if config.get(key) is not None:
                yield f"hidden_loss.positions=all: {key} has teacher and student read different rows"


def _of_answers(config: Mapping[str, Any]) -> Iterator[str]:
    """What one key's value asks of another's in the recipe generate."""
    asked = config.get("generate_with")
    if asked is not None and config.get(asked) is None:
        yield f"{asked}: missing; generate_with={asked} asks it"
    elif config.get("model") is None and config.get("teacher_model") is None:
        yield "model: missing; name the model that answers, or teacher_model"
    if config.get("dataset") is None and config.get("prompt") is None:
        yield "dataset: missing; name rows that are prompts, or one with prompt=..."
    for key, needs in (("min_score", "score"), ("best_per_prompt", "score"), ("max_samples_per_prompt", "min_score")):
        if config.get(key) is not None and config.get(needs) is None:
            yield f"{key}={config[key]}: nothing heeds it without {needs}; leave it out"
    most, each = config.get("max_samples_per_prompt"), config.get("samples_per_prompt", 1)
    if isinstance(most, int) and isinstance(each, int) and most < each:
        yield f"max_samples_per_prompt={most}: must be at least samples_per_prompt, {each}"


def _of_evaluation(config: Mapping[str, Any]) -> Iterator[str]:
    """What one key's value asks of another's in the recipe evaluate."""
    if config.get("dataset_test") is None and config.get("dataset_val") is None:
        yield (
            "dataset_test: missing; name rows that no model was trained on, as "
            "'+dataset_test={_component_: distill_tune.data.instruct, source: unseen.json}'"
        )
    if not any(config.get(key) for key in ("model", "teacher_model", "models")):
        yield "models: missing; name what is measured, as models={distilled: outputs/mine}"
    window, stride = config.get("window"), config.get("stride")
    if isinstance(window, int) and isinstance(stride, int) and stride >= window:
        yield f"stride={stride}: must be below window, {window}: a token is predicted from those before it"


def _without_effect(config: Mapping[str, Any], read_otherwise: Set[str]) -> Iterator[str]:
    """Settings that nothing would heed beside the others."""
    for key, entry in KEYS.items():
        needs_another = entry.beside and not entry.recipes and key not in read_otherwise
        is_heeded = not needs_another or any(config.get(name) for name in entry.beside)
        if not is_heeded and config.get(key) not in (None, entry.default or False):
            yield f"{key}={_shown(config[key])}: nothing heeds it without {' or '.join(entry.beside)}; leave it out"
    teacher: Any = config.get("teacher_model")
    kind = teacher["_component_"] if is_component(teacher) else ""
    is_stored = kind == _STORED  # from this very config, with the live teacher's keys in it
    for key, of_several in (("teacher_combination", "teacher_model"), ("dataset_temperature", "dataset")):
        is_one = is_component(config.get(of_several)) and not (is_stored and of_several == "teacher_model")
        if config.get(key) is not None and is_one:
            yield f"{key}={config[key]}: {of_several} names one {of_several.removesuffix('_model')}; give a list"
    if config.get("resume_from_checkpoint") and config.get("resume") is not None:
        told = f"resume_from_checkpoint={config['resume_from_checkpoint']}"
        yield f"{told}: resume={config['resume']} means the same; keep one"
    for key in ("teacher_quantizer", "teacher_offload"):
        if config.get(key) and kind.startswith(_KINDS_OF_TEACHER) and not is_stored:
            yield f"{key}: {kind} does not heed it; it is for models"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
