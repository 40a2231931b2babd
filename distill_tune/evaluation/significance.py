"""What is known of a model's figures, and of the differences between two models, and how it is told."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_tune.counts import counted
from distill_tune.evaluation import statistics
from distill_tune.evaluation.statistics import LEVEL, Array

Columns = Mapping[str, Array]  # of a model: sums over each document alone, [d]

_ALPHA = 1 - LEVEL


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure: the sum of one column over all documents, divided by that of another.

    Attributes:
        total: the column above.
        count: the column below.
        scale: by which the quotient is multiplied.
        is_exponential: the figure is e to the quotient.
        unit: of a difference; empty where models are not compared by it.
        shown: by which a difference is multiplied where it is told.
        more_is_better: or less.
        better: what the better one of two is.
        is_right_or_wrong: of a document; then its test is McNemar's.
    """

    total: str
    count: str
    scale: float = 1.0
    is_exponential: bool = False
    unit: str = ""
    shown: float = 1.0
    more_is_better: bool = False
    better: str = "better"
    is_right_or_wrong: bool = False

    def is_in(self, columns: Columns) -> bool:
        return self.total in columns and self.count in columns and bool(columns[self.count].any())

    def of(self, total: Any, count: Any) -> Any:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            quotient = self.scale * np.divide(total, count)
            return np.exp(quotient) if self.is_exponential else quotient


_NEARER = "nearer to the teacher"
_BITS = 1 / math.log(2)

MEASURES: Mapping[str, Measure] = {
    "supervised.perplexity": Measure("nll", "tokens", is_exponential=True),
    "supervised.bits_per_byte": Measure("text_nll", "bytes", scale=_BITS, unit="bits per byte"),
    "all.perplexity": Measure("all_nll", "all_tokens", is_exponential=True),
    "all.bits_per_byte": Measure("all_text_nll", "all_bytes", scale=_BITS),
    "to_teacher.forward_kl.mean": Measure("forward_kl", "compared", unit="nats of forward KL a token", better=_NEARER),
    "to_teacher.reverse_kl.mean": Measure("reverse_kl", "compared"),
    "to_teacher.total_variation": Measure("total_variation", "compared"),
    "to_teacher.agreement": Measure(
        "agreed", "compared", unit="points of agreement", shown=100, more_is_better=True, better=_NEARER
    ),
    "to_teacher.agreement_top5": Measure("agreed_top5", "compared"),
    "answers.exact_match": Measure(
        "exact_match", "answered", unit="points of exact match", shown=100, more_is_better=True, is_right_or_wrong=True
    ),
    "answers.rouge_l": Measure("rouge_l", "answered", unit="points of ROUGE-L", shown=100, more_is_better=True),
}


def intervals(models: Mapping[str, Columns], seed: int = 0) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each model's figures, within which bounds they lie with a probability of 95 %.

    Args:
        models: by label; a figure whose columns a model lacks is left out.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for label, columns in models.items():
        measures = {name: measure for name, measure in MEASURES.items() if measure.is_in(columns)}
        names = sorted({name for measure in measures.values() for name in (measure.total, measure.count)})
        if not names:
            found[label] = {}
            continue
        drawn = dict(zip(names, statistics.bootstrap_sums(_stacked(columns, names), seed=seed).T, strict=True))
        bounds = {name: _bounds(measure, columns, drawn) for name, measure in measures.items()}
        found[label] = {name: bound for name, bound in bounds.items() if bound is not None}
    return found


def _bounds(measure: Measure, columns: Columns, drawn: Mapping[str, Array]) -> tuple[float, float] | None:
    num_documents = int(np.count_nonzero(columns[measure.count]))
    if measure.is_right_or_wrong:
        return statistics.wilson_interval(round(float(columns[measure.total].sum())), num_documents)
    return statistics.interval(measure.of(drawn[measure.total], drawn[measure.count]), num_documents)


def pairs(
    models: Mapping[str, Columns],
    of: Iterable[tuple[str, str]] | None = None,
    seed: int = 0,
    measures: Mapping[str, Measure] = MEASURES,
) -> list[dict[str, Any]]:
    """Which of two models is better over the same documents, by how much, and whether that is luck.

    The interval of a difference is of a paired bootstrap over documents. The p value is of a permutation test over
    documents, which holds for few of them, too, where a bootstrap's is too small; of answers that are right or wrong it
    is McNemar's. Documents in which one of both has nothing to count, as a prompt that leaves it no room for an answer,
    are left out. Holm's correction is over all pairs that are compared by one measure.

    Args:
        models: by label, their documents in the same order.
        of: the pairs of labels; all by default.
        measures: by which they are compared, by name.

    Returns:
        the ``pairs`` of results.json.
    """
    compared = list(itertools.combinations(models, 2) if of is None else of)
    found: list[dict[str, Any]] = []
    for name, measure in measures.items():
        both = [
            (first, second)
            for first, second in compared
            if measure.unit
            and measure.is_in(models[first])
            and measure.is_in(models[second])
            and _is_counted(measure, models[first], models[second]).any()
        ]
        rows = [
            {"first": first, "second": second, "measure": name}
            | _compared(measure, models[first], models[second], seed)
            for first, second in both
        ]
        for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
            row["words"] = in_words(row, measure, len(rows))
        found += rows
    return found


def _is_counted(measure: Measure, one: Columns, other: Columns) -> NDArray[np.bool_]:
    """Of each document whether both models have something to count in it, ``[d]``."""
    return (one[measure.count] != 0) & (other[measure.count] != 0)


def _compared(measure: Measure, one: Columns, other: Columns, seed: int) -> dict[str, Any]:
    columns, is_counted = (measure.total, measure.count), _is_counted(measure, one, other)
    a, b = _stacked(one, columns)[is_counted], _stacked(other, columns)[is_counted]
    figures = float(measure.of(*a.sum(0))), float(measure.of(*b.sum(0)))
    drawn = statistics.bootstrap_sums(np.hstack([a, b]), seed=seed).T
    bounds = statistics.interval(measure.of(*drawn[:2]) - measure.of(*drawn[2:]), len(a))
    if measure.is_right_or_wrong:
        moved = a[:, 0] - b[:, 0]
        p = statistics.exact_mcnemar(int((moved > 0).sum()), int((moved < 0).sum()))
    else:
        ours, theirs, is_all = statistics.exchanged_sums(a, b, seed=seed)
        p = statistics.permutation_p(figures, measure.of(*ours.T), measure.of(*theirs.T), is_all)
    return {
        "documents": len(a),
        "difference": figures[0] - figures[1],
        "interval": bounds,
        "p": p,
        "effect": statistics.effect_size((a[:, 0], a[:, 1]), (b[:, 0], b[:, 1])),
        "test": "exact McNemar" if measure.is_right_or_wrong else "paired permutation",
    }


def _stacked(columns: Columns, names: Iterable[str]) -> Array:
    return np.stack([np.asarray(columns[name], dtype=np.float64) for name in names], axis=1)


def in_words(pair: Mapping[str, Any], measure: Measure, num_pairs: int = 1) -> str:
    """A pair as a sentence: which model is better, by how much, and whether that may be luck.

    Args:
        num_pairs: that are compared by this measure.
    """
    difference, documents = pair["difference"], pair["documents"]
    sign = 1 if (difference > 0) == measure.more_is_better else -1  # of what is better
    better, worse = (pair["first"], pair["second"])[::sign]
    turned = 1 if difference > 0 else -1
    size = turned * difference * measure.shown
    bounds = sorted(turned * bound * measure.shown for bound in pair["interval"] or ())
    reach = (bounds[1] - bounds[0]) / 2 if bounds else 0.0
    decimals = _decimals(max(reach, abs(size) / 100), 2)
    by = f"{size:.{decimals}f} {measure.unit}"
    if bounds:
        low, high = (round(bound, decimals) + 0.0 for bound in bounds)  # else one may be written -0.0
        by += f" ({LEVEL:.0%}: {low:.{decimals}f} to {high:.{decimals}f})"
    corrected = f" (Holm, {counted(num_pairs, 'pair')})" if num_pairs > 1 else ""
    p = f"{_told_p(pair['p_holm'])}{corrected}"
    if difference == 0 and pair["p"] == 1:
        return f"no difference: {pair['first']} and {pair['second']}, in {measure.unit}"
    if pair["p_holm"] < _ALPHA:
        effect = f", {_effect(pair['effect'])}" if pair["effect"] is not None else ""
        return f"{better} is {measure.better} than {worse} by {by}, {p}{effect}"
    differ = f"{pair['first']} and {pair['second']} differ by {by}, {p}"
    if num_pairs * 2 / 2**documents >= _ALPHA:
        return f"not significant, and never on {counted(documents, 'document')}: {differ}"
    if pair["p"] < _ALPHA:
        return f"not significant among so many pairs: {differ}, alone {_told_p(pair['p'])}"
    return f"not significant: {differ}"


def _decimals(size: float, digits: int) -> int:
    """With which a number about as large as ``size`` has so many digits."""
    return max(0, digits - 1 - math.floor(math.log10(size))) if 0 < size < math.inf else 0


def _told_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


_SIZES: tuple[tuple[float, str], ...] = ((0.8, "large"), (0.5, "medium"), (0.2, "small"), (0.0, "very small"))


def _effect(effect: float) -> str:
    """By Cohen's own steps."""
    size = next(size for least, size in _SIZES if abs(effect) >= least)
    return f"a {size} effect (d = {abs(effect):.2f})"
