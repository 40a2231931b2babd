"""YAML configs: found, overridden from the command line, checked key by key, and turned into components."""

from distill_tune.config.components import build, instantiate
from distill_tune.config.entry import run_recipe

__all__ = ["build", "instantiate", "run_recipe"]
