"""What lies in a run's folder, read for people: of a run that goes on, has stopped or is through, half a line included.

Nothing here imports torch, so that reading takes no seconds.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

import yaml

from distill_tune.disk import is_kept_by_another
from distill_tune.errors import UserError
from distill_tune.metrics_file import read_metrics

State = Literal["running", "finished", "stopped"]
_CONFIG, _METRICS = "config.yaml", "metrics.jsonl"
_LARGEST = 1e150
_DEEPEST = 3  # folders below one that is searched for runs


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """One run's folder. Files that are missing or cut short are read as far as they go, each when it is asked for.

    Attributes:
        path: of the folder.
        name: for people; the folder's own where nothing else is said.
    """

    path: Path
    name: str

    @classmethod
    def open(cls, path: Path, name: str | None = None) -> "RunFiles":
        """
        Raises:
            UserError: no run has written there.
        """
        if not is_run(path):
            raise UserError(
                f"{path}: no run has written there (it has neither {_CONFIG} nor {_METRICS}); name a run's output_dir"
            )
        return cls(path, name or path.resolve().name)

    @property
    def state(self) -> State:
        """Running while its process has the folder; finished once it has come to its end; else stopped."""
        if is_kept_by_another(self.path):
            return "running"
        return "finished" if (self.path / "finished.json").is_file() else "stopped"

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """As run, without secrets; empty where it cannot be read."""
        with contextlib.suppress(yaml.YAMLError):
            if isinstance(config := yaml.safe_load(self._config_text), dict):
                return config
        return {}

    @property
    def command(self) -> str | None:
        """The command line, without secrets."""
        first = self._config_text.partition("\n")[0]
        return first.removeprefix("# ") if first.startswith("# distill-tune run ") else None

    @functools.cached_property
    def _config_text(self) -> str:
        with contextlib.suppress(OSError):
            return (self.path / _CONFIG).read_text(encoding="utf-8", errors="replace")
        return ""

    @functools.cached_property
    def facts(self) -> Mapping[str, Any]:
        """run.json; empty of a run that has not begun to train, or of a version that wrote none."""
        return _read_object(self.path / "run.json")

    @property
    def total_steps(self) -> int | None:
        """That it takes in all; None where run.json does not say."""
        total = self.facts.get("total_steps")
        return total if isinstance(total, int) else None

    @functools.cached_property
    def steps(self) -> Sequence[Mapping[str, Any]]:
        """The lines of metrics.jsonl that have a step, in its order."""
        return [line for line in read_metrics(self.path / _METRICS) if isinstance(line.get("step"), int)]

    def column(self, name: str, against: str = "step") -> tuple[list[float], list[float]]:
        """``against`` and a figure, of the steps that have both; what is not finite is left out."""
        if (name, against) not in self._columns:
            found = [line for line in self.steps if is_figure(line.get(name)) and is_figure(line.get(against))]
            self._columns[name, against] = (
                [float(line[against]) for line in found],
                [float(line[name]) for line in found],
            )
        return self._columns[name, against]

    @functools.cached_property
    def _columns(self) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
        """Those that were asked for."""
        return {}

    @property
    def names(self) -> list[str]:
        """Of the figures that any step has."""
        return list(dict.fromkeys(name for line in self.steps for name in line))

    @property
    def rollouts(self) -> list[dict[str, Any]]:
        """Some of the answers that the student wrote while it trained; none of a run without rollouts."""
        return list(read_metrics(self.path / "rollouts.jsonl"))

    @property
    def evaluation(self) -> Mapping[str, Any]:
        """results.json of its evaluation; empty where there is none."""
        return _read_object(self._evaluation / "results.json")

    def samples(self) -> Iterator[dict[str, Any]]:
        """Of its evaluation, document by document."""
        return read_metrics(self._evaluation / "samples.jsonl")

    @property
    def _evaluation(self) -> Path:
        return self.path / "evaluation"


def is_run(path: Path) -> bool:
    """Whether a training run has written there; teacher_cache and generate have no metrics, and their own files.

    A run's checkpoint, which has a copy of its metrics, is none.
    """
    if (path / _METRICS).is_file():
        return not (path / "state.json").is_file()
    others = ("manifest.json", "generation.json")
    return (path / _CONFIG).is_file() and not any((path / other).is_file() for other in others)


def find_runs(folder: Path) -> list[Path]:
    """The run that a folder is, or those that lie below it, by their names; none within a run."""
    if is_run(folder):
        return [folder]
    found, level = [], [folder]
    for _ in range(_DEEPEST):
        below = [path for parent in level for path in _folders_in(parent)]
        found += [path for path in below if is_run(path)]
        level = [path for path in below if not is_run(path)]
    return sorted(found)


def opened(folders: Sequence[Path]) -> list[RunFiles]:
    """Several runs, by names that tell them apart: as much of the end of each path as that takes.

    Raises:
        UserError: one of them is no run's.
    """
    unique = list({folder.resolve(): folder for folder in folders}.values())
    parts = [folder.resolve().parts for folder in unique]
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return [RunFiles.open(folder, "/".join(part[-length:])) for folder, part in zip(unique, parts, strict=True)]


def is_figure(value: Any) -> TypeGuard[float]:
    """Whether it is a number, finite and no larger than what can be squared and added up."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _folders_in(parent: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return []


def _read_object(path: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if isinstance(found := json.loads(path.read_text(encoding="utf-8", errors="replace")), dict):
            return found
    return {}
