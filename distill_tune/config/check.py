"""A config that a recipe can run: every key and value checked, all faults told at once."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from distill_tune.config.files import find_config
from distill_tune.config.keys import check_keys, keys_of_recipe
from distill_tune.config.load import load_config
from distill_tune.config.values import check_values
from distill_tune.errors import Faults


def checked_config(recipe: Path, config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Load a config for a recipe and check its keys and plain values. Fast: imports nothing that a component names.

    Raises:
        UserError: with all faults.
    """
    path = find_config(config_name)
    config = load_config(path, overrides)
    source = path.read_text(encoding="utf-8") + "\n".join(overrides)
    faults = check_keys(config, keys_of_recipe(recipe), source) + check_values(config)
    if faults:
        raise Faults(f"config {path}" + (" and the command line" if overrides else ""), faults)
    return config
