"""A config that a recipe can run: every key, value and argument checked, all faults told at once."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from distill_tune.config.components import arguments_taken, check_components
from distill_tune.config.files import find_config, folders_of_own_modules
from distill_tune.config.load import load_config
from distill_tune.config.missing_files import missing_files
from distill_tune.config.nodes import components_of, nodes_of
from distill_tune.config.recipe_keys import Recipe, check_keys
from distill_tune.config.trust import is_known, missing_outside
from distill_tune.config.values import check_values
from distill_tune.errors import Faults
from distill_tune.launch import process_environment

_MAY_IMPORT = {"nothing": lambda name: False, "known": is_known, "all": lambda name: True}


def checked_config(
    recipe: Path,
    config_name: str,
    overrides: Sequence[str],
    imports: Literal["nothing", "known", "all"] = "nothing",
    needs_weights: bool = True,
) -> DictConfig:
    """Load a config and check its keys, its plain values and, where their modules are imported, components' arguments.

    A component that the command line puts in another's place keeps those of the file's arguments that it takes; the
    others are dropped, in a line that names them.

    Args:
        imports: the modules of components: none, which takes no time; those of packages that this one is made for; all.
        needs_weights: False where folders and files of models may lack.

    Raises:
        UserError: with all faults.
    """
    path, read, may_import = find_config(config_name), Recipe(recipe), _MAY_IMPORT[imports]
    if imports == "all":
        sys.path[:0] = [folder for folder in folders_of_own_modules(recipe) if folder not in sys.path]
    config, dropped = load(path, overrides, may_import)
    source = path.read_text(encoding="utf-8") + "\n".join(overrides)
    faults, unread = check_keys(config, read, source, overrides)
    if imports != "nothing" and process_environment(os.environ)["RANK"] == "0":
        for line in [*dropped, *unread]:
            print(line)
    faults += [*check_components(config, may_import), *check_values(config, read.reads_otherwise)]
    faults += missing_outside(config, folders_of_own_modules(recipe)) if imports == "known" else []
    faults += [file for file in missing_files(config, source) if needs_weights or not file.is_of_weights]
    if faults:
        raise Faults(f"config {path}" + (" and the command line" if overrides else ""), faults)
    return config


def load(
    path: Path, overrides: Sequence[str], may_import: Callable[[str], bool] = _MAY_IMPORT["all"]
) -> tuple[DictConfig, list[str]]:
    """A config in which a component that an override names has no arguments of another that it does not take.

    Returns:
        The config, and a line for each component that lost arguments.
    """
    config = load_config(path, overrides)
    in_file = dict(nodes_of(OmegaConf.to_container(OmegaConf.load(path))))
    return config, list(_drop_arguments_of_replaced(config, in_file, overrides, may_import))


def _drop_arguments_of_replaced(
    config: DictConfig, in_file: Mapping[str, Any], overrides: Sequence[str], may_import: Callable[[str], bool]
) -> Iterator[str]:
    """Drop what the file gives another component than the command line names, where this one does not take it."""
    written = [override.lstrip("+") for override in overrides]
    given = [override.partition("=")[0] for override in written]
    for key, component in components_of(config):
        name, old = component["_component_"], in_file.get(key)
        is_named = f"{key}={name}" in written or f"{key}._component_={name}" in written
        taken = arguments_taken(key, name) if is_named and may_import(name) else None
        if taken is None or not isinstance(old, dict) or old.get("_component_") in (None, name):
            continue
        checkpointer = key.replace("model", "checkpointer")
        if f"{key}.path" in given and checkpointer in config and not any(w.startswith(checkpointer) for w in given):
            del config[checkpointer]
            yield f"{checkpointer}: is of the model that the file names; {key}.path has the new one's weights: left out"
        is_given = {a for a in old if any(f"{w}.".startswith(f"{key}.{a}.") for w in given)}
        dropped = [a for a in old if a in component and a not in taken | is_given | {"_component_"}]
        for argument in dropped:
            del component[argument]
        if dropped:
            told = f"{key}: {name} does not take {', '.join(dropped)}, which the file gives {old['_component_']}"
            yield f"{told}: left out"
