"""What two texts share, word by word, in a time that grows with their length alone, however much they repeat."""

import bisect
import difflib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence

import numpy

from distill_tune.data.conversation import num_same

_RUN = 4  # words; of which one that occurs once in each text is taken to be the same place
_WINDOW = 128  # words that are compared with each other where no such run is


def shared_words(mine: Sequence[Hashable], its: Sequence[Hashable]) -> Iterator[tuple[int, int, int]]:
    """Runs of words that both texts have, in their order: where each begins in one and the other, and its length.

    Runs that are nowhere else in either text come first, as many as are in the same order (patience diff); each goes on
    as far as both are the same. What stands between is compared a window at a time by :mod:`difflib`, whose time is
    quadratic, and worse, in words that occur again and again. A part that one text alone has, of more words than a
    window and without such a run behind it, takes what follows with it.
    """
    numbers: dict[Hashable, int] = {}
    words, its_words = (
        numpy.array([numbers.setdefault(word, len(numbers)) for word in text], numpy.int64) for text in (mine, its)
    )
    at = its_at = 0
    for place, its_place in [*_rare_runs(words, its_words), (len(words), len(its_words))]:
        if place < at or its_place < its_at:
            continue
        between, its_between = words[at:place], its_words[its_at:its_place]
        before = num_same(between[::-1], its_between[::-1])
        parts = between[: len(between) - before], its_between[: len(its_between) - before]
        for start, its_start, size in _by_windows(*parts):
            yield at + start, its_at + its_start, size
        size = before + num_same(words[place:], its_words[its_place:])
        at, its_at = place - before, its_place - before
        yield at, its_at, size
        at, its_at = at + size, its_at + size


def _rare_runs(mine: numpy.ndarray, its: numpy.ndarray) -> list[tuple[int, int]]:
    """Where in both texts runs begin that occur once in each: the most of them that are in the same order."""
    where, its_where = _once(mine), _once(its)
    pairs = [(at, its_where[run]) for run, at in where.items() if run in its_where]
    # The longest increasing subsequence: of each length, the one that ends first, and which pair it ends in.
    ends, last, before = list[int](), list[int](), list[int]()
    for number, (_, its_at) in enumerate(pairs):
        length = bisect.bisect(ends, its_at)
        ends[length : length + 1], last[length : length + 1] = [its_at], [number]
        before.append(last[length - 1] if length else -1)
    found, number = list[tuple[int, int]](), last[-1] if last else -1
    while number >= 0:
        found.append(pairs[number])
        number = before[number]
    return found[::-1]


def _once(text: numpy.ndarray) -> dict[tuple[int, ...], int]:
    """Runs that occur once, with their places, in order."""
    runs = list(zip(*(text[start:].tolist() for start in range(_RUN)), strict=False))
    count = Counter(runs)
    return {run: at for at, run in enumerate(runs) if count[run] == 1}


def _by_windows(mine: numpy.ndarray, its: numpy.ndarray) -> Iterator[tuple[int, int, int]]:
    """:func:`shared_words` of each window, which begins where the last run of the one before it ends."""
    at = its_at = 0
    while at < len(mine) and its_at < len(its):
        windows = mine[at : at + _WINDOW].tolist(), its[its_at : its_at + _WINDOW].tolist()
        *found, nothing = difflib.SequenceMatcher(None, *windows, autojunk=False).get_matching_blocks()
        yield from ((at + start, its_at + its_start, size) for start, its_start, size in found[:-1])
        start, its_start, size = found[-1] if found else nothing
        at, its_at = at + start, its_at + its_start
        size = num_same(mine[at:], its[its_at:]) if size else 0
        if size:
            yield at, its_at, size
        at, its_at = at + size, its_at + size
