"""What came out of a sweep: a row for each setting, and in words whether the best is better than the next."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from distill_tune.counts import rough_duration
from distill_tune.evaluation.statistics import student_t_quantile
from distill_tune.sweep.objective import Objective
from distill_tune.sweep.results import Result
from distill_tune.sweep.trials import Trial, Trials
from distill_tune.sweep.values import Axis, Values

_BESIDE = {"perplexity": "{:.2f}", "kl": "{:.4f}", "agreement": "{:.3f}"}  # told beside the objective
_HEADINGS = {"bits_per_byte": "bits/byte", "kl": "KL", "perplexity": "perplexity"}
_LONGEST = 28  # characters of a value
_UNBOUNDED = 10_000


@dataclasses.dataclass(frozen=True)
class Difference:
    """By how much one setting is better than another.

    Attributes:
        low, high: of the interval that has the true one with 95 %, for all one knows from these seeds.
    """

    by: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        return self.low > 0


def difference(first: Result, second: Result, results: Iterable[Result], objective: Objective) -> Difference | None:
    """Of two means, by Student's t with the variance of all settings that were repeated, taken to be one and the same.

    None where none was.
    """
    repeated = [result for result in results if len(result.values) > 1]
    freedom = sum(len(result.values) - 1 for result in repeated)
    if not freedom:
        return None
    variance = sum((len(result.values) - 1) * statistics.variance(result.values) for result in repeated) / freedom
    error = math.sqrt(variance * (1 / len(first.values) + 1 / len(second.values)))
    half = error * student_t_quantile(0.975, freedom)
    by = objective.cost(second.mean) - objective.cost(first.mean)
    return Difference(by, by - half, by + half)


def sentences(results: Sequence[Result], objective: Objective, axes: Sequence[Axis]) -> Iterator[str]:
    """What the table says, and what it does not."""
    if not results:
        yield "No trial has come to its end."
        return
    best = results[0]
    seeds = f", mean of {len(best.values)} seeds" if len(best.values) > 1 else ""
    yield f"Best: {best.title}, {best.mean:.4f} {objective.unit}{seeds} (trial_{best.trials[0].number})."
    if len(results) > 1:
        yield _beside_the_next(best, results[1], difference(best, results[1], results, objective))
    if ends := [*_at_an_end(results, axes)]:
        yield f"{' and '.join(ends)}: what lies beyond was not tried."


def _beside_the_next(best: Result, second: Result, found: Difference | None) -> str:
    if found is None:
        return (
            "One seed each: what another seed changes is not known, so the best may be the luckiest; --repeat 2 tells."
        )
    interval = f"95 % interval {found.low:.4f} to {found.high:.4f}"
    if found.is_clear:
        return f"It is clearly better than the next, {second.title}: by {found.by:.4f} ({interval})."
    return (
        f"It is not clearly better than the next, {second.title}: by {found.by:.4f} ({interval}); other "
        "seeds may turn it round."
    )


def _at_an_end(results: Sequence[Result], axes: Sequence[Axis]) -> Iterator[str]:
    """Which numbers of the best are the smallest or largest of those that were tried of a list."""
    for axis in axes:
        texts = [result.trials[0].settings.get(axis.key, "") for result in results]
        numbers = [_number(text) for text in texts]
        known = [number for number in numbers if number is not None]
        is_list_of_numbers = isinstance(axis, Values) and len(known) == len(numbers) and len({*known}) > 1
        if is_list_of_numbers and known[0] in (min(known), max(known)):
            end = "largest" if known[0] == max(known) else "smallest"
            yield f"{axis.key}={texts[0]} is the {end} of its values"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def unfinished(trials: Trials, objective: Objective) -> list[Trial]:
    return [trial for trial in trials if not trial.has(objective.name)]


def terminal_table(trials: Trials, results: Sequence[Result], objective: Objective, console: Console) -> Table:
    """As wide as the console allows: what is beside the objective goes first."""
    unbounded = console.options.update(width=_UNBOUNDED)
    columns = [*_columns(trials, results, objective)]
    for beside in range(len(_beside(results, objective)), -1, -1):
        table = _rich(_kept(columns, beside))
        if Measurement.get(console, unbounded, table).minimum <= console.width:
            break
    return table


def markdown(trials: Trials, results: Sequence[Result], objective: Objective) -> str:
    """The same with every column."""
    columns = [*_columns(trials, results, objective)]
    rows = [[heading for heading, *_ in columns], ["---" if left else "---:" for _, left, _, _ in columns]]
    rows += [list(row) for row in zip(*(cells for *_, cells in columns), strict=True)]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |\n" for row in rows)


def last_lines(trials: Trials, objective: Objective) -> list[str]:
    """Of trials that failed."""
    return [
        f"{trial.name} failed ({trial.title}): {trial.said}"
        for trial in unfinished(trials, objective)
        if trial.state == "failed"
    ]


_Column = tuple[str, bool, bool, list[str]]  # heading, whether it is text, whether it may go, cells


def _beside(results: Sequence[Result], objective: Objective) -> list[str]:
    """Names of the other figures that trials have."""
    there = {name for result in results for trial in result.trials for name in trial.figures}
    return [name for name in _BESIDE if name in there and name != objective.name]


def _kept(columns: Sequence[_Column], beside: int) -> list[_Column]:
    may_go = [column for column in columns if column[2]]
    return [column for column in columns if not column[2] or column in may_go[:beside]]


def _columns(trials: Trials, results: Sequence[Result], objective: Objective) -> Iterator[_Column]:
    left = unfinished(trials, objective)
    rows = [result.trials[0] for result in results] + left
    none = [""] * len(left)
    yield "trial", False, False, [str(trial.number) for trial in rows]
    keys = list(dict.fromkeys(key for trial in rows for key in trial.settings))
    for key in keys:
        values = [_short(trial.settings.get(key, "")) for trial in rows]
        is_text = any(value and _number(value) is None for value in values)
        yield _heading(key, keys), is_text, False, values
    figures = [_figure(result) for result in results]
    yield _HEADINGS.get(objective.name, objective.name), False, False, [*figures, *(trial.state for trial in left)]
    if any(len(result.values) > 1 for result in results):
        yield "seeds", False, False, [*(str(len(result.values)) for result in results), *none]
    yield "time", False, False, [*(_time(result.trials) for result in results), *(_time([trial]) for trial in left)]
    for name in _beside(results, objective):
        cells = [_mean(name, result.trials) for result in results]
        yield _HEADINGS.get(name, name), False, True, [*cells, *none]


def _heading(key: str, keys: Sequence[str]) -> str:
    """The last part of a key where no other ends so."""
    last = key.rpartition(".")[2]
    return last if [other.rpartition(".")[2] for other in keys].count(last) == 1 else key


def label(trial: Trial) -> str:
    """Its folder's name and what it varies, as short as in the table."""
    keys = [*trial.settings]
    return " ".join([trial.name, *(f"{_heading(key, keys)}={_short(trial.settings[key])}" for key in keys)])


def _short(text: str) -> str:
    """A component's name without where it is from; long values cut."""
    is_name = text.count(".") > 1 and all(part.isidentifier() for part in text.split("."))
    short = text.rpartition(".")[2] if is_name else text
    return short if len(short) <= _LONGEST else f"{short[: _LONGEST - 3]}..."


def _figure(result: Result) -> str:
    return f"{result.mean:.4f}" + (f" ± {result.spread:.4f}" if result.spread is not None else "")


def _mean(name: str, trials: Sequence[Trial]) -> str:
    values = [trial.figures[name] for trial in trials if name in trial.figures]
    return _BESIDE[name].format(statistics.fmean(values)) if values else ""


def _time(trials: Sequence[Trial]) -> str:
    return rough_duration(statistics.fmean([trial.seconds for trial in trials]))


def _rich(columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, is_text, _, cells in columns:
        whole = None if is_text else max(map(len, [heading, *cells]))  # "23 min" is measured by its longest word
        table.add_column(
            heading,
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            min_width=whole,
        )
    for row in zip(*(cells for *_, cells in columns), strict=True):
        table.add_row(*row)
    return table
