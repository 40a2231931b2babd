"""A config whose models need not be there, for commands that look at shapes alone."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, is_model_folder
from distill_tune.config.missing_files import missing_files
from distill_tune.config.nodes import components_of, is_model
from distill_tune.errors import Faults


def config_without_weights(recipe: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """A config that is right but for models' folders and weights that are not there.

    Folders that are not there are those of :func:`~distill_tune.models.published.published_folder`, where their names
    are known.

    Raises:
        UserError: with all other faults; also where a folder is neither there nor known.
    """
    cfg = checked_config(recipe, name, overrides, "all", needs_weights=False)
    for known in use_published(cfg):
        print(f"{known}: is not here; its shape is taken as it is published")
    if still := [*missing_files(cfg, needs_weights=False)]:
        raise Faults(f"config {find_config(name)}", still)
    return cfg


def use_published(cfg: DictConfig) -> list[str]:
    """Name, in place of folders that are not there, those with the published config.json of their names.

    Returns:
        The names.
    """
    from distill_tune.models.published import published_folder

    names = []
    for key, component in components_of(cfg):
        name = "path" if is_model(key) else "checkpoint_dir"
        path = component.get(name)
        if isinstance(path, str) and not is_model_folder(path) and (folder := published_folder(path)):
            component[name] = str(folder)
            names.append(folder.name)
    return list(dict.fromkeys(names))
