"""Trials without processes: what each reaches is made up, and when it ends is the test's own."""

import json
from pathlib import Path

import pytest

from distill_tune.sweep.objective import OBJECTIVES
from distill_tune.sweep.schedule import Schedule
from distill_tune.sweep.trials import Trial, Trials


class MadeRun:
    """Ends when it is asked for the ``length``-th time, or has been stopped; writes a validation before each."""

    def __init__(self, folder: Path, length: int, status: int, losses: list[float]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._length, self._status, self._losses = folder / "metrics.jsonl", length, status, losses
        self._asked, self.stopped_by, self.is_killed = 0, 0, False
        self.seconds, self.said = 7.0, "out of memory"
        self._write()

    def _write(self) -> None:
        lines = [{"step": n, "val_ce_loss": loss} for n, loss in enumerate(self._losses[: self._asked + 1], 1)]
        self._file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def poll(self) -> int | None:
        self._asked += 1
        self._write()
        if self.stopped_by:
            return 128 + self.stopped_by
        return self._status if self._asked >= self._length else None

    def stop(self, number: int) -> None:
        self.stopped_by = number

    def end(self) -> None:
        self.is_killed = True


class Asked:
    number = 0


class Sweeping:
    """A sweep of made runs.

    Attributes:
        value: the objective of a trial.
        made: what each trial is run as, by what it varies: length, status, losses.
        started: trials in the order in which they began, and where.
        said: lines that a person would see.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.objective = folder, OBJECTIVES["bits_per_byte"]
        self.value = lambda trial: 1.0
        self.made = lambda trial: (1, 0, [])
        self.started: list[tuple[int, str | None]] = []
        self.runs: dict[int, MadeRun] = {}
        self.said: list[str] = []
        self.trials = Trials(folder)

    def again(self) -> "Sweeping":
        """Another call of the same command."""
        other = Sweeping(self.folder)
        other.value, other.made = self.value, self.made
        return other

    def schedule(self, devices=(None,), num_runs=0) -> Schedule:
        def start(trial: Trial, device: str | None) -> MadeRun:
            self.started.append((trial.number, device))
            self.runs[trial.number] = MadeRun(self.trials.folder_of(trial), *self.made(trial))
            return self.runs[trial.number]

        def measure(trial: Trial) -> dict[str, float]:
            return {self.objective.name: self.value(trial)}

        return Schedule(
            self.trials,
            self.objective,
            start,
            measure,
            devices,
            self.said.append,
            num_runs=num_runs,
            seconds_between_looks=0,
        )


@pytest.fixture
def sweeping(tmp_path: Path) -> Sweeping:
    (tmp_path / "sweep").mkdir()
    return Sweeping(tmp_path / "sweep")


@pytest.fixture
def finished(sweeping: Sweeping):
    """Add trials that have come to their end, by what they reached: of each setting one a seed."""

    def add(values: dict[str, list[float]], **figures: float) -> Trials:
        for setting, of_seeds in values.items():
            key, _, text = setting.partition("=")
            for seed, value in enumerate(of_seeds):
                trial = sweeping.trials.add({key: text}, seed)
                trial.state, trial.figures, trial.seconds = "finished", {"bits_per_byte": value, **figures}, 60.0
        return sweeping.trials

    return add
