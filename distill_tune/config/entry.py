"""How a recipe starts: from `distill-tune run`, from torchrun, or as a plain script."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from distill_tune.config.check import checked_config
from distill_tune.config.components import check_components
from distill_tune.errors import Faults, UserError


def run_recipe(main: Callable[[DictConfig], None], arguments: Sequence[str] | None = None) -> None:
    """Read ``--config NAME [overrides]``, check every key, value and component argument, then call ``main(cfg)``.

    A user's mistake ends with its message and exit code 2.
    """
    recipe = Path(main.__code__.co_filename)
    parser = argparse.ArgumentParser(prog=recipe.name, usage=f"{recipe.name} --config CONFIG [key=value ...]")
    parser.add_argument("--config", required=True, help="a config's name or path")
    parser.add_argument("overrides", nargs="*", help="key=value, +key=value, ~key")
    options = parser.parse_intermixed_args(arguments)
    with told_without_traceback():
        cfg = checked_config(recipe, options.config, options.overrides)
        if faults := check_components(cfg):
            raise Faults(f"config {options.config}", faults)
        main(cfg)


class told_without_traceback:
    """Turns a :class:`UserError` into its message on stderr and exit code 2, and Ctrl-C into a line and 130.

    With DISTILL_TUNE_TRACEBACK=1 in the environment the traceback is shown, for those who edit a recipe.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, UserError) and os.environ.get("DISTILL_TUNE_TRACEBACK") != "1":
            print(f"distill-tune: {error}", file=sys.stderr)
            sys.exit(2)
        if isinstance(error, KeyboardInterrupt):
            print("distill-tune: interrupted", file=sys.stderr)
            sys.exit(130)
