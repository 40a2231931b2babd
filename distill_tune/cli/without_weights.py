"""A config whose models need not be there, for commands that look at shapes alone."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, is_model_folder, local_path
from distill_tune.config.recipe_keys import keys_read_otherwise
from distill_tune.config.values import check_values
from distill_tune.errors import Faults

_OF_WEIGHTS = re.compile(r"(teacher_)?(model|checkpointer)(\.\d+)?\.(path|checkpoint_dir|checkpoint_files)\b.*no such ")
_PLACES = (("model", "path"), ("teacher_model", "path"), ("checkpointer", "checkpoint_dir"),
           ("teacher_checkpointer", "checkpoint_dir"))  # fmt: skip


def config_without_weights(recipe: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """A config that is right but for models' folders and weights that are not there.

    Folders that are not there are those of :func:`~distill_tune.models.published.published_folder`, where their names
    are known.

    Raises:
        UserError: with all other faults; also where a folder is neither there nor known.
    """
    cfg = checked_config(recipe, name, overrides, "all", _OF_WEIGHTS)
    missing = [fault for fault in check_values(cfg, keys_read_otherwise(recipe)) if _OF_WEIGHTS.match(fault)]
    for known in use_published(cfg):
        print(f"{known}: is not here; its shape is taken as it is published")
    if still := [fault for fault in missing if _is_unknown(cfg, fault)]:
        raise Faults(f"config {find_config(name)}", still)
    return cfg


def use_published(cfg: DictConfig) -> list[str]:
    """Name, in place of folders that are not there, those with the published config.json of their names.

    Returns:
        The names.
    """
    from distill_tune.models.published import published_folder

    names = []
    for entry, key in _entries(cfg):
        path = entry.get(key)
        is_here = isinstance(path, str) and is_model_folder(local_path(path))
        if isinstance(path, str) and not is_here and (folder := published_folder(path)):
            entry[key] = str(folder)
            names.append(folder.name)
    return list(dict.fromkeys(names))


def _entries(cfg: DictConfig) -> list[tuple[Any, str]]:
    found = []
    for name, key in _PLACES:
        value = cfg.get(name)
        values = list(value) if isinstance(value, ListConfig) else [value]
        found += [(entry, key) for entry in values if isinstance(entry, DictConfig)]
    return found


def _is_unknown(cfg: DictConfig, fault: str) -> bool:
    """Whether none of the config's folders, as they are now, makes up for what is told."""
    key = fault.partition("=")[0].partition(":")[0].rpartition(".")[0]
    entries = [cfg.get(key)] if "." not in key else [cfg.get(key.partition(".")[0])[int(key.rpartition(".")[2])]]
    paths = [local_path(str(e.get("path") or e.get("checkpoint_dir"))) for e in entries if e is not None]
    return not all((path / "config.json").is_file() for path in paths)
