"""The folder of a sweep: one recipe and one config, whatever varies; and what each of its trials is run with."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_tune.config.keys import SECTIONS
from distill_tune.disk import keep_to_oneself, write_text
from distill_tune.errors import UserError
from distill_tune.sweep.best import OF_THE_SWEEP
from distill_tune.sweep.trials import Trial
from distill_tune.sweep.values import overrides_of

_RESULTS = "evaluation_folder"  # of a config's own; a trial's are read in its folder
_MAY_CHANGE = SECTIONS["What is written"].keys() - {"keep_best"}


def claim(folder: Path, recipe: str, config: Mapping[str, Any], keys: Sequence[str], varied: Sequence[str]) -> None:
    """Keep a folder to this sweep, and note in sweep.json what its trials share.

    Args:
        recipe: its name.
        config: that the trials share, as plain values without secrets.
        keys: that vary, as the command line has them; another list of them is another sweep.
        varied: dotted keys that differ between trials, in which the folder's earlier ones may be others.

    Raises:
        UserError: the folder cannot be written, another sweep runs there, or one of another recipe, config or other
            keys has.
    """
    file = folder / "sweep.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not keep_to_oneself(folder):
            raise UserError(f"--folder {folder}: another sweep is writing there; wait for it, or name another")
        if file.is_file():
            _require_same(file, recipe, config, keys, varied)
        noted = {"recipe": recipe, "keys": keys, "config": config}
        write_text(file, json.dumps(noted, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--folder {folder}: cannot be written: {error.strerror}") from error


def _require_same(
    file: Path, recipe: str, config: Mapping[str, Any], keys: Sequence[str], varied: Sequence[str]
) -> None:
    from distill_tune.training.state import changes_between

    try:
        was = json.loads(file.read_text(encoding="utf-8"))
        changes, keys_were = [*changes_between(was["config"], config)], was["keys"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{file}: cannot be read ({error}); name another --folder") from error
    if {*keys_were} != {*keys}:
        raise UserError(
            f"--folder {file.parent}: its trials vary {', '.join(keys_were)}, these {', '.join(keys)}: "
            "they cannot be ranked together; name another"
        )
    free = {*varied} | _MAY_CHANGE
    told = [text for key, text in changes if not any(key == one or key.startswith(f"{one}.") for one in free)]
    if was["recipe"] != recipe:
        told.insert(0, f"recipe {was['recipe']} -> {recipe}")
    if told:
        raise UserError(
            f"--folder {file.parent}: holds a sweep whose trials are not as these would be; "
            "set it back, or name another\n  " + "\n  ".join(told)
        )


def require_free(keys: Sequence[str], overrides: Sequence[str]) -> None:
    """
    Raises:
        UserError: a key of the command line is one that each trial is given by the sweep.
    """
    given = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for key in (*OF_THE_SWEEP, _RESULTS):
        if key in given and key != "keep_last_n":
            raise UserError(f"{key}: each trial has its own below --folder, and goes on from there; leave it out")
    for key in keys:
        if key in (*OF_THE_SWEEP, _RESULTS):
            raise UserError(f"{key}: cannot vary; each trial has its own folder below --folder")


def training_overrides(folder: Path, trial: Trial, config: Mapping[str, Any]) -> list[str]:
    """What a trial is run with besides what all share.

    Args:
        folder: its own.
        config: that the trials share.
    """
    own = [f"output_dir={json.dumps(str(folder), ensure_ascii=False)}", "resume=auto"]
    if config.get("resume_from_checkpoint"):
        own.append("resume_from_checkpoint=False")
    if config.get("keep_last_n") is None:  # what a trial needs to go on from, and no more
        own.append("keep_last_n=1")
    if "seed" not in trial.settings:
        own.append(f"seed={trial.seed}")
    return [*overrides_of(trial.settings), *own]
