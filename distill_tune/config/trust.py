"""What a config would import and call, told without doing either: for configs that come from others."""

import importlib.util
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig

from distill_tune.config.values import components_of

# Their modules may be imported to look at a signature.
KNOWN = {"bitsandbytes", "distill_tune", "torch", "torchao", "torchdata", "torchtune", "transformers"}
# What is written here may be called to see whether its arguments fit: it builds something, and touches nothing else.
_BUILDERS = (
    "distill_tune.data.augmentation",
    "distill_tune.losses.",
    "distill_tune.models.",
    "distill_tune.teachers.",
    "distill_tune.training.schedules",
    "torchtune.models.",
    "torchtune.modules.",
)


def is_known(name: str) -> bool:
    """Whether a component is of a package that this one is made for."""
    return name.partition(".")[0] in KNOWN


def outside(config: DictConfig) -> Iterator[str]:
    """A line for each component of another package: its key, its name, and the file that would be run."""
    for key, component in components_of(config):
        name = str(component["_component_"])
        if not is_known(name):
            yield f"{key}: {name}, {_file_of(name.partition('.')[0])}"
        if component.get("trust_remote_code") is True:
            yield f"{key}: trust_remote_code=True runs the Python files of {component.get('path')}"


def may_be_called(component: Any) -> bool:
    """Whether building a component, with those among its arguments, runs code of known builders alone."""
    from distill_tune.config.components import find_component, is_served

    if isinstance(component, ListConfig):
        return all(may_be_called(entry) for entry in component)
    if not isinstance(component, DictConfig):
        return True
    for _, part in components_of(component, itself=True):
        name = str(part["_component_"])
        if part.get("trust_remote_code") is True or not is_known(name):
            return False
        # By where it is written, not by how it is reached: a module of ours imports os, too.
        if not is_served(name) and not str(getattr(find_component(name), "__module__", "")).startswith(_BUILDERS):
            return False
    return True


def _file_of(package: str) -> str:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    return f"from {spec.origin}" if spec and spec.origin else "which is not installed here"
