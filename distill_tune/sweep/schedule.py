"""Which trial runs when and on which device, until there are no more, or the sweep is told to stop."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from distill_tune.counts import counted, rough_duration
from distill_tune.sweep.follow import MetricsFollower
from distill_tune.sweep.objective import Objective
from distill_tune.sweep.search import Search
from distill_tune.sweep.trials import Trial, Trials
from distill_tune.sweep.values import Settings

_SECONDS_BETWEEN_LOOKS = 0.5
_FIRST, _THEN, _LAST = range(3)  # what was interrupted, what is new, what failed


class Running(Protocol):
    """A trial under way: :class:`~distill_tune.sweep.running.TrialProcess`, or what a test puts in its place."""

    @property
    def seconds(self) -> float: ...

    @property
    def said(self) -> str: ...

    def poll(self) -> int | None: ...

    def stop(self, number: int) -> None: ...

    def end(self) -> None: ...


class Asked(Protocol):
    """Who was told to stop: the signal's number, 0 while there is none."""

    number: int


Propose = Callable[[], Trial | None]


class Schedule:
    """
    Args:
        start: a trial on a device, as ``devices`` names them.
        measure: the figures of a trial that has come to its end.
        devices: on each of which one trial runs at a time.
        say: told when a trial begins and ends.
        show: told often how far the trials under way are.
        num_runs: that are to come in all, of which the time is told once one is through.
    """

    def __init__(
        self,
        trials: Trials,
        objective: Objective,
        start: Callable[[Trial, str | None], Running],
        measure: Callable[[Trial], Mapping[str, float]],
        devices: Sequence[str | None],
        say: Callable[[str], None],
        show: Callable[[Mapping[int, int]], None] = lambda steps: None,
        num_runs: int = 0,
        seconds_between_looks: float = _SECONDS_BETWEEN_LOOKS,
    ) -> None:
        self._trials, self._objective = trials, objective
        self._start, self._measure, self._devices = start, measure, list(devices)
        self._say, self._show, self._num_runs, self._wait = say, show, num_runs, seconds_between_looks
        self._running: dict[str | None, tuple[Trial, Running, MetricsFollower]] = {}
        self._steps: dict[int, int] = {}
        self._pruned: set[int] = set()
        self.tried: set[int] = set()

    @property
    def seconds_each(self) -> float | None:
        """That a trial takes; None while none has come to its end."""
        took = [trial.seconds for trial in self._trials if trial.state == "finished" and trial.seconds]
        return sum(took) / len(took) if took else None

    def run(self, propose: Propose, asked: Asked, search: Search | None = None) -> None:
        """Until nothing is proposed and nothing runs; or, once it is asked to stop, until what runs has ended.

        Args:
            search: ends trials that are behind.
        """
        told = 0
        try:
            while True:
                if asked.number and asked.number != told:
                    told = asked.number
                    for _, running, _ in self._running.values():
                        running.stop(told)
                if not told:
                    self._fill(propose)
                if not self._running:
                    return
                time.sleep(self._wait)
                for device, (trial, running, follower) in list(self._running.items()):
                    self._look(trial, running, follower, search)
                    if (status := running.poll()) is not None:
                        self._take(trial, running, status, told)
                        del self._running[device]
                self._show(self._steps)
        finally:
            for trial, running, _ in self._running.values():
                running.end()
                trial.state = "stopped"
            self._running.clear()

    def _fill(self, propose: Propose) -> None:
        for device in self._devices:
            if device in self._running or (trial := propose()) is None:
                continue
            self.tried.add(trial.number)
            trial.state, trial.said = "running", ""
            self._trials.write()
            seed = "" if "seed" in trial.settings else f" seed={trial.seed}"
            self._say(f"{trial.name}: {trial.title}{seed}" + (f", device {device}" if device else ""))
            follower = MetricsFollower(self._trials.folder_of(trial) / "metrics.jsonl")
            self._running[device] = trial, self._start(trial, device), follower

    def _look(self, trial: Trial, running: Running, follower: MetricsFollower, search: Search | None) -> None:
        for line in follower.new_lines():
            self._steps[trial.number] = int(line.get("step", 0))
            if search is None or line.get("val_ce_loss") is None:
                continue
            trial.validations[int(line["step"])] = float(line["val_ce_loss"])
            if trial.number not in self._pruned and search.is_pruned(trial, self._trials):
                self._pruned.add(trial.number)
                running.stop(signal.SIGTERM)

    def _take(self, trial: Trial, running: Running, status: int, told: int) -> None:
        """What came of a trial that has ended."""
        trial.seconds += running.seconds
        self._steps.pop(trial.number, None)
        if status == 0:
            trial.figures, trial.said = self._figures(trial)
            trial.state = "failed" if trial.said else "finished"
        elif trial.number in self._pruned:
            trial.state = "pruned"
        elif told:
            trial.state = "stopped"
        else:
            trial.state, trial.said = "failed", running.said or f"ended with {status}"
        self._trials.write()
        self._say(f"{trial.name}: {self._told(trial)}")

    def _figures(self, trial: Trial) -> tuple[dict[str, float], str]:
        """What a trial reached, and why that is not the objective, if it is not."""
        try:
            figures = dict(self._measure(trial))
        except Exception as error:  # whatever is wrong with its files, the other trials go on
            return {}, f"its figures cannot be read: {type(error).__name__}: {error}"
        name = self._objective.name
        return figures, "" if name in figures else f"has no {name}, or none that is finite"

    def _told(self, trial: Trial) -> str:
        if trial.state == "finished":
            reached = f"{trial.figures[self._objective.name]:.4f} {self._objective.unit}"
            return f"{reached}, in {rough_duration(trial.seconds)}{self._left()}"
        if trial.state == "failed":
            return f"failed: {trial.said}"
        step = max(trial.validations, default=0)
        return f"ended early: at step {step} it is behind the others" if trial.state == "pruned" else trial.state

    def _left(self) -> str:
        """After the first trial of this call: what the others take."""
        left = self._num_runs - sum(trial.state in ("finished", "pruned") for trial in self._trials)
        if len(self.tried) > len(self._devices) or left < 1 or not self.seconds_each:
            return ""
        return f"; {counted(left, 'run')} left, some {rough_duration(left * self.seconds_each / len(self._devices))}"


def next_planned(
    planned: Sequence[tuple[Settings, int]], trials: Trials, objective: Objective, tried: set[int]
) -> Trial | None:
    """Of settings and seeds that are to be run: what was interrupted, then what is new, then what failed before.

    Args:
        tried: numbers of trials that this call has run.
    """
    best: tuple[int, Trial | None, tuple[Settings, int]] | None = None
    for point in planned:
        trial = trials.find(*point)
        if trial is not None and (trial.number in tried or trial.has(objective.name)):
            continue
        turn = _THEN if trial is None else _turn(trial)
        if best is None or turn < best[0]:
            best = turn, trial, point
    if best is None:
        return None
    return best[1] or trials.add(*best[2])


def _turn(trial: Trial) -> int:
    return {"running": _FIRST, "stopped": _FIRST, "failed": _LAST}.get(trial.state, _THEN)


def next_searched(search: Search, most: int, trials: Trials, objective: Objective, tried: set[int]) -> Trial | None:
    """What a search was interrupted at, then what it proposes, until there are so many."""
    known = search.known(trials)
    for trial in known:
        is_through = trial.has(objective.name) or trial.state in ("pruned", "failed")
        if trial.number not in tried and not is_through:
            return trial
    settings = search.propose(trials) if len(known) < most else None
    return None if settings is None else trials.add(settings, search.seed)
