"""What a config would import and call, told without doing either: for configs that come from others."""

import functools
import importlib.util
import pkgutil
import re
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill_tune.config.components import find_component
from distill_tune.config.nearest import has_no, no_module
from distill_tune.config.nodes import components_of

# Their modules may be imported to look at a signature.
KNOWN = {"bitsandbytes", "distill_tune", "torch", "torchao", "torchdata", "torchtune", "transformers"}
# What is written here may be called to see whether its arguments fit: it builds something or reads a file, no more.
_BUILDERS = (
    "bitsandbytes.optim.",
    "distill_tune.data.augmentation",
    "distill_tune.data.datasets",
    "distill_tune.data.tokenizer",
    "distill_tune.generation.",
    "distill_tune.losses.",
    "distill_tune.models.",
    "distill_tune.qat.",
    "distill_tune.rollouts.",
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
# How a module comes by names that do not stand in it.
_NAMES_OTHERWISE = r"import \*|^def __getattr__|globals\(|sys\.modules|lazy|exec\("


def is_known(name: str) -> bool:
    """Whether a component is of a package that this one is made for; one without a module is of none."""
    return name.isidentifier() or name.partition(".")[0] in {*KNOWN, ""}


def outside(config: DictConfig, folders: Sequence[str] = ()) -> Iterator[str]:
    """A line for each component of another package: its key, its name, and the file that would be run.

    Args:
        folders: that are searched before those of installed packages.
    """
    for key, component in components_of(config):
        name = component["_component_"]
        if not is_known(name):
            spec = _spec_of(name.partition(".")[0], folders)
            yield f"{key}: {name}, " + (
                f"from {spec.origin}" if spec and spec.origin else "which is not installed here"
            )
        if component.get("trust_remote_code") is True:
            yield f"{key}: trust_remote_code=True runs the Python files of {component.get('path')}"


def missing_outside(config: DictConfig, folders: Sequence[str] = ()) -> Iterator[str]:
    """Faults that the files of such packages tell: no such package, or nothing of that name in it."""
    for key, component in components_of(config):
        name = component["_component_"]
        if not is_known(name) and (fault := _missing(name, folders)):
            yield f"{key}._component_={name}: {fault}"


def _missing(name: str, folders: Sequence[str]) -> str | None:
    """None also where its files do not tell for sure."""
    package, *rest = name.split(".")
    if (spec := _spec_of(package, folders)) is None:
        return no_module(package, folders)
    while rest and (below := _spec_of(f"{spec.name}.{rest[0]}", spec.submodule_search_locations or [])):
        spec, rest = below, rest[1:]
    if not rest or not str(spec.origin).endswith(".py"):
        return None
    text = Path(str(spec.origin)).read_text(encoding="utf-8", errors="replace")
    if re.search(rf"\b{re.escape(rest[0])}\b|{_NAMES_OTHERWISE}", text, re.MULTILINE):
        return None
    names = re.findall(r"^(?:async def |def |class )?(\w+)", text, re.MULTILINE)
    names += [module.name for module in pkgutil.iter_modules(spec.submodule_search_locations or [])]
    return has_no(spec.name, rest[0], names)


def _spec_of(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    try:
        # Of a module in a package importlib.util would import the package.
        return PathFinder.find_spec(name, folders) or (None if "." in name else importlib.util.find_spec(name))
    except (ImportError, ValueError, OSError):
        return None


def may_be_called(component: Any) -> bool:
    """Whether building a component, with those among its arguments, runs code of known builders alone."""
    for _, part in components_of(component):
        name = part["_component_"]
        runs_more = part.get("trust_remote_code") is True or isinstance(part.get(_IMPORTED_BY_NAME), str)
        if runs_more or not is_known(name):
            return False
        called = find_component(name)
        # Where it is written; not how it is reached, since a module of ours imports os, too.
        written = called.func if isinstance(called, functools.partial) else called
        if not str(getattr(written, "__module__", "")).startswith(_BUILDERS):
            return False
    return True
