"""Trials that differ in their seeds alone, taken together, the best first."""

import dataclasses
import statistics
from collections.abc import Sequence

from distill_tune.sweep.objective import Objective
from distill_tune.sweep.trials import Trial, Trials, identity
from distill_tune.sweep.values import Settings


@dataclasses.dataclass(frozen=True)
class Result:
    """Trials of one setting that have come to their end, one a seed.

    Attributes:
        values: the objective of each.
    """

    trials: Sequence[Trial]
    values: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def title(self) -> str:
        return self.trials[0].title


def results_of(trials: Trials, objective: Objective) -> list[Result]:
    """By their means, the best first."""
    found: dict[tuple[object, ...], list[Trial]] = {}
    for trial in trials:
        if trial.has(objective.name):
            found.setdefault(identity(trial.settings, 0), []).append(trial)
    results = [Result(of, [trial.figures[objective.name] for trial in of]) for of in found.values()]
    return sorted(results, key=lambda result: objective.cost(result.mean))


def to_repeat(
    trials: Trials, objective: Objective, num_settings: int, seeds: Sequence[int]
) -> list[tuple[Settings, int]]:
    """The settings that are best by what is known of them, each with seeds that it has not been run with.

    What they turn out as may bring others to the top, which are then to be repeated in their turn.
    """
    best = results_of(trials, objective)[:num_settings]
    points = [(result.trials[0].settings, seed) for result in best for seed in seeds]
    return [point for point in points if (trial := trials.find(*point)) is None or not trial.has(objective.name)]
