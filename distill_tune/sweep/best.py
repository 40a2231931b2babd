"""best.yaml of a sweep: the config of its best trial, whole, for a run of its own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill_tune.disk import write_text
from distill_tune.errors import UserError

# That a sweep gives its trials; the config's own hold again.
OF_THE_SWEEP = ("resume", "resume_from_checkpoint", "keep_last_n", "output_dir")


def write_best(file: Path, trial: Path, base: Mapping[str, Any], output_dir: Path, head: Sequence[str]) -> None:
    """
    Args:
        trial: the best one's folder.
        base: the config that the trials share.
        output_dir: where a run with the config writes.
        head: lines that the file begins with.

    Raises:
        UserError: the trial's config.yaml is not there, or the file cannot be written.
    """
    source = trial / "config.yaml"
    try:
        config = yaml.safe_load(source.read_text(encoding="utf-8"))
        config = _moved(config, str(config["output_dir"]), str(output_dir))
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(f"{source}: cannot be read ({error}), so there is no {file.name}") from error
    for key in OF_THE_SWEEP[:-1]:
        config.pop(key, None)
        if key in base:
            config[key] = base[key]
    try:
        write_text(
            file, "".join(f"# {line}\n" for line in head) + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        )
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from error


def _moved(node: Any, old: str, new: str) -> Any:
    """Every path of a folder as one of another."""
    if isinstance(node, dict):
        return {key: _moved(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_moved(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or node.startswith(f"{old}/")):
        return new + node[len(old) :]
    return node
