"""A config that a recipe can run: every key, value and argument checked, all faults told at once."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.components import arguments_taken, check_components
from distill_tune.config.files import configs_folder, find_config, folders_of_own_modules
from distill_tune.config.launch import process_environment
from distill_tune.config.load import load_config, read_value
from distill_tune.config.recipe_keys import check_keys, keys_read_otherwise, unnamed_keys
from distill_tune.config.trust import is_known, missing_outside
from distill_tune.config.values import check_values, components_of
from distill_tune.errors import Faults


def checked_config(
    recipe: Path,
    config_name: str,
    overrides: Sequence[str],
    imports: Literal["nothing", "known", "all"] = "nothing",
    tolerated: re.Pattern[str] | None = None,
) -> DictConfig:
    """Load a config and check its keys, its plain values and, where their modules are imported, components' arguments.

    A component that the command line puts in another's place keeps those of the file's arguments that it takes; the
    others are dropped, in a line that names them.

    Args:
        imports: the modules of components: none, which takes no time; those of packages that this one is made for; all.
        tolerated: how faults begin that are none here.

    Raises:
        UserError: with all faults.
    """
    path = find_config(config_name)
    may_import = is_known if imports == "known" else None
    if imports == "all":
        sys.path[:0] = [folder for folder in folders_of_own_modules(recipe) if folder not in sys.path]
    config, dropped = (load_config(path, overrides), []) if imports == "nothing" else load(path, overrides, may_import)
    source = path.read_text(encoding="utf-8") + "\n".join(overrides)
    faults = check_keys(config, recipe, source, overrides)
    if imports != "nothing":
        for line in [*dropped, *unnamed_keys(config, recipe, source)]:
            if process_environment(os.environ)["RANK"] == "0":
                print(line)
        faults += check_components(config, may_import)
        faults += missing_outside(config, folders_of_own_modules(recipe)) if imports == "known" else []
    faults += check_values(config, keys_read_otherwise(recipe))
    faults = [f"{fault}{_how_to_get_it(fault, source)}" for fault in faults]
    if faults := [fault for fault in faults if not (tolerated and tolerated.match(fault))]:
        raise Faults(f"config {path}" + (" and the command line" if overrides else ""), faults)
    return config


def load(
    path: Path, overrides: Sequence[str], may_import: Callable[[str], bool] | None = None
) -> tuple[DictConfig, list[str]]:
    """A config in which a component that an override names has no arguments of another that it does not take.

    Args:
        may_import: whether a module may be; None for all.

    Returns:
        The config, and a line for each component that lost arguments.
    """
    config = load_config(path, overrides)
    return config, list(_drop_arguments_of_replaced(config, OmegaConf.load(path), overrides, may_import))


def _how_to_get_it(fault: str, source: str) -> str:
    """For a model's folder that is not there: the command of the config's head, or of a shipped one, that gets it."""
    missing = re.search(r"[=:] ?([^=\s]+): no such f", fault)
    if missing is None or fault.startswith("dataset"):
        return ""
    for text in (source, *(path.read_text(encoding="utf-8") for path in configs_folder().rglob("*.yaml"))):
        for command, name in re.findall(r"^# +(distill-tune download \S+/(\S+))$", text, re.MULTILINE):
            parts = Path(missing[1]).parts
            if name in parts:
                folder = Path(*parts[: parts.index(name) + 1])
                output = "" if folder == Path("models") / name else f" --output {folder}"
                return f"; get it: {command}{output}"
    return ""


def _drop_arguments_of_replaced(
    config: DictConfig, file: DictConfig | ListConfig, overrides: Sequence[str], may_import: Any
) -> Iterator[str]:
    """Drop what the file gives another component than the command line names, where this one does not take it."""
    written: dict[str, Any] = {}
    for override in overrides:
        if "=" in override:
            written[override.lstrip("+").partition("=")[0]] = read_value(override) if "${" not in override else None
    in_file = OmegaConf.to_container(file)
    for key, component in components_of(config):
        old = _at(in_file, key)
        name = component["_component_"]
        if name not in (written.get(key), written.get(f"{key}._component_")) or old.get("_component_") in (None, name):
            continue
        checkpointer = key.replace("model", "checkpointer")
        if f"{key}.path" in written and checkpointer in config and not any(w.startswith(checkpointer) for w in written):
            del config[checkpointer]
            yield f"{checkpointer}: is of the model that the file names; {key}.path has the new one's weights: left out"
        inherited = [argument for argument in map(str, component) if argument in old and argument != "_component_"]
        inherited = [i for i in inherited if not any(f"{w}.".startswith(f"{key}.{i}.") for w in written)]
        taken = arguments_taken(key, component, may_import)
        if taken is None or not (dropped := [argument for argument in inherited if argument not in taken]):
            continue
        for argument in dropped:
            del component[argument]
        yield f"{key}: {name} does not take {', '.join(dropped)}, which the file gives {old['_component_']}: left out"


def _at(node: Any, key: str) -> dict[str, Any]:
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else node[int(part)] if isinstance(node, list) else None
    return node if isinstance(node, dict) else {}
