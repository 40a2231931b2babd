"""The curves of runs, thinned to as many points as a picture shows."""

import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from distill_tune.reports.run_files import RunFiles

_MOST_POINTS, _POINTS, _FEWEST_POINTS = 240, 2200, 8  # of a curve, of all together, of a curve at least
_VALIDATIONS = 60  # points of a curve
_MOST_MARKS = 50
MOST_WITH_BANDS = 3  # runs: of more, bands hide the lines
_LOGARITHMIC = 50.0  # times its median: a figure that goes so far up


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of metrics.jsonl that is drawn.

    Attributes:
        validation: the same on validation rows.
        smooths: it differs from step to step by the rows that a step has.
        factor: from its own unit to the one that is shown.
        from_zero: its ordinate begins there.
        only_changing: not where it is the same in each step.
    """

    name: str
    title: str
    unit: str = ""
    validation: str | None = None
    smooths: bool = False
    factor: float = 1.0
    from_zero: bool = False
    only_changing: bool = False


FIGURES = (
    Figure("kd_loss", "Divergence from the teacher", "nats a token", "val_kd_loss", smooths=True),
    Figure("ce_loss", "Cross-entropy", "nats a token", "val_ce_loss", smooths=True),
    Figure("loss", "Loss as optimised", "a token", "val_loss", smooths=True),
    Figure("hidden_loss", "Hidden-state loss", "a token", "val_hidden_loss", smooths=True),
    Figure("lr", "Learning rate"),
    Figure("grad_norm", "Gradient norm", smooths=True),
    Figure("tokens_per_second", "Speed", "tokens/s", smooths=True, from_zero=True),
    Figure("peak_memory_bytes", "Peak memory", "GiB", factor=2.0**-30, from_zero=True),
    Figure("model_flops_utilization", "Model FLOP utilisation", "%", smooths=True, factor=100.0, from_zero=True),
    Figure("kd_ratio", "kd_ratio", only_changing=True),
    Figure("temperature", "Temperature", only_changing=True),
    Figure("hidden_loss_weight", "hidden_loss_weight", only_changing=True),
    Figure("rollout_length", "Length of answers", "tokens", smooths=True, from_zero=True),
    Figure("rollout_cut", "Answers that are cut", "%", smooths=True, factor=100.0, from_zero=True),
    Figure("rollout_acceptance", "Acceptance by the teacher", "%", smooths=True, factor=100.0, from_zero=True),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of one run's figure; of several steps in a point their mean, and the lowest and highest of them.

    Attributes:
        run: its number among those of the report.
        low, high: empty where each point is one step.
    """

    run: int
    steps: Sequence[float]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    is_validation: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
    """
    Attributes:
        marks: by run, steps that were not applied.
        is_logarithmic: its ordinate.
    """

    figure: Figure
    title: str
    unit: str
    curves: Sequence[Curve]
    marks: Mapping[int, Sequence[float]] = dataclasses.field(default_factory=dict)
    is_logarithmic: bool = False


def charts_of(runs: Sequence[RunFiles]) -> list[Chart]:
    """Of every figure that any of the runs has."""
    columns = {figure: _columns(figure, runs) for figure in FIGURES}
    shown = {
        figure: found for figure, found in columns.items() if any(_is_shown(figure, ys) for _, _, (_, ys) in found)
    }
    num_curves = sum(len(found) for found in shown.values()) or 1
    most = max(_FEWEST_POINTS, min(_MOST_POINTS, _POINTS // num_curves))
    return [_chart(figure, found, runs, most) for figure, found in shown.items()]


Column = tuple[int, bool, tuple[list[float], list[float]]]  # number of the run, whether validation, steps and values


def _columns(figure: Figure, runs: Sequence[RunFiles]) -> list[Column]:
    found = []
    for number, run in enumerate(runs):
        for name in filter(None, (figure.name, figure.validation)):
            steps, values = run.column(name)
            if any(values):  # a part of the loss that has no weight is 0
                values = [value * figure.factor for value in values]
                found.append((number, name == figure.validation, (steps, values)))
    return found


def _is_shown(figure: Figure, values: Sequence[float]) -> bool:
    return not figure.only_changing or min(values) < max(values)


def _chart(figure: Figure, columns: Sequence[Column], runs: Sequence[RunFiles], most: int) -> Chart:
    curves = [
        _thinned(run, *column, most=min(most, _VALIDATIONS) if is_validation else most, is_validation=is_validation)
        for run, is_validation, column in columns
    ]
    if len(runs) > MOST_WITH_BANDS:
        curves = [dataclasses.replace(curve, low=(), high=()) for curve in curves]
    values = [value for _, _, (_, of_run) in columns for value in of_run]
    marks = {}
    if figure.name == "grad_norm":
        bad = {run: _not_applied(runs[run]) for run, _, _ in columns}
        marks = {run: steps for run, steps in bad.items() if steps}
    title, unit = figure.title, figure.unit
    if figure.name == "kd_loss":
        title, unit = _of_divergence([runs[run] for run, _, _ in columns])
    rises_far = figure.name == "grad_norm" and max(values) > _LOGARITHMIC * statistics.median(values)
    return Chart(figure, title, unit, curves, marks, is_logarithmic=rises_far and min(values) > 0)


def _not_applied(run: RunFiles) -> list[float]:
    return [float(line["step"]) for line in run.steps if line.get("applied") is False][:_MOST_MARKS]


def _of_divergence(runs: Sequence[RunFiles]) -> tuple[str, str]:
    """Title and unit of the divergence that runs were trained by: not all are in nats."""
    names = {divergence_of(run.config) for run in runs}
    if all(name.startswith("ForwardKL") for name in names):
        return "KL to the teacher", "nats a token"
    in_nats = all("KL" in name or name == "JensenShannon" for name in names)
    named = f": {names.pop()}" if len(names) == 1 else ""
    return f"Divergence from the teacher{named}", "nats a token" if in_nats else "a token"


def divergence_of(config: Mapping[str, Any]) -> str:
    """The name of its component, or of what is taken without one."""
    component = config.get("kd_loss")
    path = component.get("_component_") if isinstance(component, Mapping) else component
    return str(path or "ForwardKL").rpartition(".")[2]


def _thinned(run: int, steps: Sequence[float], values: Sequence[float], most: int, is_validation: bool) -> Curve:
    if len(steps) <= most:
        return Curve(run, steps, values, is_validation=is_validation)
    ends = [len(steps) * part // most for part in range(most + 1)]
    parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return Curve(
        run,
        [steps[part][-1] for part in parts],
        [statistics.fmean(values[part]) for part in parts],
        [min(values[part]) for part in parts],
        [max(values[part]) for part in parts],
        is_validation,
    )


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Averages of the values so far whose weights fall by ``weight`` from each to the one before it."""
    found, mean, total = [], 0.0, 0.0
    for value in values:
        mean, total = weight * mean + (1 - weight) * value, weight * total + (1 - weight)
        found.append(mean / total)
    return found


def tokens_at(run: RunFiles, most: int = 60) -> tuple[list[float], list[float]]:
    """Some steps, with the tokens that were read until then: what lies between lies near a line."""
    steps, tokens = run.column("total_tokens")
    if len(steps) > most:
        kept = [round(at * (len(steps) - 1) / (most - 1)) for at in range(most)]
        steps, tokens = [steps[at] for at in kept], [tokens[at] for at in kept]
    return steps, tokens
