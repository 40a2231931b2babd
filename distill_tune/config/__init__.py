"""YAML configs: found, overridden from the command line, checked key by key, and turned into components."""

from distill_tune.config.components import build, instantiate
from distill_tune.config.entry import run_recipe
from distill_tune.config.secrets import without_secrets

__all__ = ["build", "instantiate", "run_recipe", "without_secrets"]
