"""Is it luck? Intervals and tests of figures that are sums over documents divided by sums over documents.

What is drawn anew or exchanged is always a whole document: its tokens depend on one another, so that a test that takes
each of them for a trial of its own finds differences where there are none. Plain numpy, float64, no models.
"""

import functools
import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.95
_DRAWS = 2**20  # documents that are drawn at one time
_ROUNDING = 1e-12  # of a quotient: sums of the same numbers in another order are held for the same
_ANGLES = 200_001
_NORMAL = statistics.NormalDist()


def bootstrap_sums(columns: Array, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """The columns' sums over as many documents as there are, drawn with replacement, many times.

    The same documents are drawn for all columns: sums of several models side by side are those of a paired bootstrap.

    Args:
        columns: sums over each document alone, ``[d, m]``.

    Returns:
        ``[resamples, m]``.
    """
    generator, num_documents = np.random.default_rng(seed), len(columns)

    def times_drawn(rows: int) -> Array:
        drawn = generator.integers(0, num_documents, (rows, num_documents))
        drawn += num_documents * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * num_documents)
        return counts.reshape(rows, num_documents).astype(np.float64)

    return _weighted_sums(times_drawn, columns, resamples)


def exchanged_sums(first: Array, second: Array, resamples: int = RESAMPLES, seed: int = 0) -> tuple[Array, Array, bool]:
    """Two models' sums where chance decides in each document which of them it belongs to.

    If neither model is better than the other, these are as likely as the sums that were found.

    Args:
        first, second: sums over each document alone, ``[d, m]`` each.

    Returns:
        the sums of both, ``[r, m]`` each, and whether they are those of all ways to exchange, which they are where
        there are no more than ``resamples``.
    """
    generator, num_documents = np.random.default_rng(seed), len(first)
    is_all = 2**num_documents <= resamples
    half_difference, half_sum = 0.5 * (first - second), 0.5 * (first + second).sum(0)
    if is_all:
        numbers = np.arange(2**num_documents)[:, None]
        signs = 1.0 - 2.0 * (numbers >> np.arange(num_documents) & 1)
        moved = signs @ half_difference
    else:

        def drawn_signs(rows: int) -> Array:
            return 1.0 - 2.0 * generator.integers(0, 2, (rows, num_documents), dtype=np.int8).astype(np.float64)

        moved = _weighted_sums(drawn_signs, half_difference, resamples)
    return half_sum + moved, half_sum - moved, is_all


def _weighted_sums(weights: Callable[[int], Array], columns: Array, resamples: int) -> Array:
    """``[resamples, m]``; of the weights, ``[rows, d]``, only some rows are there at one time."""
    rows = max(1, _DRAWS // max(1, len(columns)))
    parts = [weights(min(rows, resamples - start)) @ columns for start in range(0, resamples, rows)]
    return np.concatenate(parts)


def interval(values: Array, num_documents: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Between which bounds a figure lies, by what it was on documents drawn anew.

    The bounds are percentiles, so they never leave the range of the figure. Of few documents the plain percentiles are
    too close to one another: theirs are moved outwards to where Student's t puts them (Hesterberg, What Teachers Should
    Know About the Bootstrap, The American Statistician 69, 2015: the expanded percentile interval).

    Args:
        values: ``[resamples]``; those that are not finite, of draws in which nothing was counted, are left out.

    Returns:
        None where there are fewer than two documents, or no values.
    """
    values = values[np.isfinite(values)]
    if num_documents < 2 or not len(values):
        return None
    t = student_t_quantile((1 - level) / 2, num_documents - 1)
    tail = _NORMAL.cdf(math.sqrt(num_documents / (num_documents - 1)) * t)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


@functools.cache
def student_t_quantile(probability: float, freedom: int) -> float:
    """Of Student's t with so many degrees of freedom: t = sqrt(freedom) tan(a), where a has a density of
    cos(a) ** (freedom - 1)."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, _ANGLES)
    density = np.cos(angles) ** (freedom - 1)
    up_to = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(np.interp(probability, up_to / up_to[-1], angles))


def wilson_interval(right: int, num_documents: int, level: float = LEVEL) -> tuple[float, float] | None:
    """Of a share of documents (Wilson 1927). A bootstrap would say of none in twenty that it is surely none.

    Returns:
        None where there is no document.
    """
    if not num_documents:
        return None
    z, share = _NORMAL.inv_cdf((1 + level) / 2), right / num_documents
    middle = share + z**2 / (2 * num_documents)
    reach = z * math.sqrt(share * (1 - share) / num_documents + (z / (2 * num_documents)) ** 2)
    scale = 1 + z**2 / num_documents
    low = (middle - reach) / scale if right else 0.0
    return low, (middle + reach) / scale if right < num_documents else 1.0


def permutation_p(found: tuple[float, float], first: Array, second: Array, is_all: bool) -> float:
    """How likely a difference as large as this is if it is all the same which model is which, in both directions.

    With one token a document, right or wrong, this is the exact McNemar test; with more it is what that test becomes
    where tokens of a document depend on one another.

    Args:
        found: the figures of both models.
        first, second: what they are where documents are exchanged at random, ``[r]`` each.
        is_all: they are those of all ways to exchange; else what was found counts as one of them, so that p is never 0
            (Phipson and Smyth 2010).
    """
    rounding = _ROUNDING * max(map(abs, found))  # of the figures themselves: their difference may be far smaller
    reached = np.count_nonzero(np.abs(first - second) >= abs(found[0] - found[1]) - rounding)
    return reached / len(first) if is_all else (reached + 1) / (len(first) + 1)


def exact_mcnemar(first_alone: int, second_alone: int) -> float:
    """Of documents in which one of two models alone is right: how likely so uneven a share of them is by chance.

    McNemar's test by the binomial distribution itself, in both directions.
    """
    num = first_alone + second_alone
    ways = tail = 1  # to choose none of them, then one more each time; whole numbers, so exact
    for chosen in range(min(first_alone, second_alone)):
        ways = ways * (num - chosen) // (chosen + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**num)


def holm(p_values: Sequence[float]) -> list[float]:
    """What they are among so many, by Holm (1979): below 0.05 with at most that chance of one that is luck."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def effect_size(first: tuple[Array, Array], second: tuple[Array, Array]) -> float | None:
    """The difference of two quotients of sums in standard deviations of a document's share in it.

    Where each document counts as much as the others this is Cohen's d of paired differences: their mean by their
    standard deviation.

    Args:
        first, second: a model's numerators and denominators, ``[d]`` each.

    Returns:
        None where all documents have the same share: fewer than two, or models that differ in all by as much.
    """
    (total, count), (other_total, other_count) = first, second
    ratio, other_ratio = total.sum() / count.sum(), other_total.sum() / other_count.sum()
    shares = (total - ratio * count) / count.mean() - (other_total - other_ratio * other_count) / other_count.mean()
    if len(shares) < 2 or (deviation := shares.std(ddof=1)) <= _ROUNDING * max(abs(ratio), abs(other_ratio)):
        return None
    return float((ratio - other_ratio) / deviation)
