"""A config that a recipe can run: every key and value checked, all faults told at once."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from distill_tune.config.components import check_components_without_import
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config
from distill_tune.config.recipe_keys import check_keys, keys_read_otherwise
from distill_tune.config.values import check_values
from distill_tune.errors import Faults


def checked_config(recipe: Path, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Load a config and check its keys, its plain values, and arguments as far as the components' source tells.

    Fast: imports nothing that a component names; ``check_components`` does the rest.

    Raises:
        UserError: with all faults.
    """
    path = find_config(config_name)
    config = load_config(path, overrides)
    source = path.read_text(encoding="utf-8") + "\n".join(overrides)
    faults = check_keys(config, recipe, source, overrides) + check_values(config, keys_read_otherwise(recipe))
    faults += check_components_without_import(config)
    if faults:
        raise Faults(f"config {path}" + (" and the command line" if overrides else ""), faults)
    return config
