"""What a config would import and call, told without doing either: for configs that come from others."""

import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig

from distill_tune.config.components import find_component
from distill_tune.config.nodes import components_of

# Their modules may be imported to look at a signature.
KNOWN = {"bitsandbytes", "distill_tune", "torch", "torchao", "torchdata", "torchtune", "transformers"}
# What is written here may be called to see whether its arguments fit: it builds something or reads a file, no more.
_BUILDERS = (
    "bitsandbytes.optim.",
    "distill_tune.data.augmentation",
    "distill_tune.data.datasets",
    "distill_tune.data.tokenizer",
    "distill_tune.losses.",
    "distill_tune.models.",
    "distill_tune.teachers.",
    "distill_tune.training.schedules",
    "torch.optim.",
    "torchao.optim.",
    "torchtune.datasets.",
    "torchtune.models.",
    "torchtune.modules.",
    "torchtune.training.lr_schedulers",
)
# What torchtune's tokenizers and datasets import by a name in text.
_IMPORTED_BY_NAME = "prompt_template"


def is_known(name: str) -> bool:
    """Whether a component is of a package that this one is made for."""
    return name.partition(".")[0] in KNOWN


def outside(config: DictConfig) -> Iterator[str]:
    """A line for each component of another package: its key, its name, and the file that would be run."""
    for key, component in components_of(config):
        name = component["_component_"]
        if not is_known(name):
            yield f"{key}: {name}, {_file_of(name.partition('.')[0])}"
        if component.get("trust_remote_code") is True:
            yield f"{key}: trust_remote_code=True runs the Python files of {component.get('path')}"


def may_be_called(component: Any) -> bool:
    """Whether building a component, with those among its arguments, runs code of known builders alone."""
    for _, part in components_of(component):
        name = part["_component_"]
        if part.get("trust_remote_code") is True or isinstance(part.get(_IMPORTED_BY_NAME), str):
            return False
        if not is_known(name) or not _where_written(find_component(name)).startswith(_BUILDERS):
            return False
    return True


def _where_written(component: Any) -> str:
    """The module; not how it is reached, since a module of ours imports os, too."""
    written = component.func if isinstance(component, functools.partial) else component
    return str(getattr(written, "__module__", ""))


def _file_of(package: str) -> str:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    return f"from {spec.origin}" if spec and spec.origin else "which is not installed here"
