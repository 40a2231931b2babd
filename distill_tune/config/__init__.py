"""YAML configs: found, overridden from the command line, checked key by key, and turned into components.

entry.py starts a recipe with a config that check.py has let pass: found by files.py, read and overridden by load.py,
its keys those of the table in keys.py (kinds.py says what their values may be) or of a copied recipe (recipe_keys.py),
its values right beside each other (values.py), its components callable with their arguments (components.py), its files
there (missing_files.py). trust.py says what of it would run code from elsewhere.
"""

from distill_tune.config.components import build, instantiate
from distill_tune.config.entry import run_recipe
from distill_tune.secrets import without_secrets

__all__ = ["build", "instantiate", "run_recipe", "without_secrets"]
