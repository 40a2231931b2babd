"""trials.jsonl of a sweep: a line a trial, what it varies, how it stands, and what it reached."""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from distill_tune.disk import write_text
from distill_tune.errors import UserError
from distill_tune.sweep.values import Settings, overrides_of, same


@dataclasses.dataclass
class Trial:
    """
    Attributes:
        number: from 1 on; its run is in the folder trial_NUMBER.
        settings: what it varies, as YAML by key.
        seed: that it is run with.
        state: running (also of a sweep that was killed), stopped, pruned, failed or finished.
        figures: what it reached, by name.
        validations: ``val_ce_loss`` by step, as far as a search has looked at it.
        seconds: that it took, interruptions left out.
        said: the last line of one that failed.
    """

    number: int
    settings: dict[str, str]
    seed: int
    state: str = "running"
    figures: dict[str, float] = dataclasses.field(default_factory=dict)
    validations: dict[int, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    said: str = ""

    @property
    def name(self) -> str:
        return f"trial_{self.number}"

    @property
    def title(self) -> str:
        return shlex.join(overrides_of(self.settings))

    def has(self, figure: str) -> bool:
        return self.state == "finished" and figure in self.figures


class Trials:
    """All trials of a sweep's folder.

    Args:
        folder: of the sweep, which need not be there yet.

    Raises:
        UserError: trials.jsonl is there and broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "trials.jsonl"
        self._trials = list(_read(self._file))

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._trials)

    def __len__(self) -> int:
        return len(self._trials)

    def folder_of(self, trial: Trial) -> Path:
        return self.folder / trial.name

    def find(self, settings: Settings, seed: int) -> Trial | None:
        """The trial of these settings, however they are written."""
        wanted = identity(settings, seed)
        return next((trial for trial in self._trials if identity(trial.settings, trial.seed) == wanted), None)

    def add(self, settings: Settings, seed: int) -> Trial:
        trial = Trial(max((trial.number for trial in self._trials), default=0) + 1, dict(settings), seed)
        self._trials.append(trial)
        return trial

    def write(self) -> None:
        """
        Raises:
            UserError: the disk refuses it.
        """
        lines = (json.dumps(dataclasses.asdict(trial), ensure_ascii=False) + "\n" for trial in self._trials)
        try:
            write_text(self._file, "".join(lines))
        except OSError as error:
            raise UserError(f"{self._file}: cannot be written: {error.strerror}") from error


def identity(settings: Settings, seed: int) -> tuple[object, ...]:
    return (*sorted((key, same(key, text)) for key, text in settings.items()), seed)


def _read(file: Path) -> Iterable[Trial]:
    if not file.is_file():
        return
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            trial = Trial(**json.loads(line))
            trial.validations = {int(step): value for step, value in trial.validations.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{file}: line {number} is no trial ({error}); name another --folder") from error
        yield trial
