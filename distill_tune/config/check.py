"""A config that a recipe can run: every key, value and argument checked, all faults told at once."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from distill_tune.config.components import check_components
from distill_tune.config.files import find_config, folders_of_own_modules
from distill_tune.config.load import load_config
from distill_tune.config.missing_files import missing_files
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

    Args:
        imports: the modules of components: none, which takes no time; those of packages that this one is made for; all.
        needs_weights: False where folders and files of models may lack.

    Raises:
        UserError: with all faults.
    """
    path, read, may_import = find_config(config_name), Recipe(recipe), _MAY_IMPORT[imports]
    if imports == "all":
        sys.path[:0] = [folder for folder in folders_of_own_modules(recipe) if folder not in sys.path]
    dropped = list[str]()
    config = load_config(path, overrides, may_import, dropped.append)
    source = path.read_text(encoding="utf-8") + "\n".join(overrides)
    faults, unread = check_keys(config, read, source, overrides)
    if imports != "nothing" and process_environment(os.environ)["RANK"] == "0":
        for line in [*dropped, *unread]:
            print(line)
    faults += check_components(config, may_import)
    faults += check_values(config, read.reads_otherwise, read.reads_as)
    faults += missing_outside(config, folders_of_own_modules(recipe)) if imports == "known" else []
    faults += [
        file
        for file in missing_files(config, source)
        if needs_weights or file.startswith(("tokenizer", "teacher_tokenizer"))
    ]
    if faults:
        raise Faults(f"config {path}" + (" and the command line" if overrides else ""), faults)
    return config
