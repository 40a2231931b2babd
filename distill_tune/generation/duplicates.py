"""Answers that say what others say: duplicates among themselves, and texts that are held out."""

import hashlib
from collections.abc import Sequence

import numpy

from distill_tune.data.sources import RowError, load_dataset
from distill_tune.generation.answers import Answer
from distill_tune.generation.words import grams, hashed, words

_HASHES, _BANDS = 128, 32  # bands of four: a pair that has 0.6 in common is met with 99 % certainty


class Duplicates:
    """Of answers to whichever prompts that are nearly the same, the first.

    Near ones are found by MinHash (Broder 1997) and compared by the Jaccard index of their runs of words.

    Args:
        similarity: the index from which on two are the same; 1 for the same words alone.
        n: words of a run.
    """

    after_choice = True

    def __init__(self, similarity: float = 0.8, n: int = 3) -> None:
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity={similarity}: must be above 0, at most 1")
        self._similarity, self._n = similarity, n
        random = numpy.random.default_rng(0)
        self._factors = random.integers(1, 2**61, _HASHES, dtype=numpy.uint64) | numpy.uint64(1)
        self._kept: list[numpy.ndarray] = []  # of each answer its runs, hashed, ascending
        self._before: list[numpy.ndarray] = []  # of each answer and band, the one before with the same; -1: none
        self._last: dict[int, int] = {}  # by band, the last answer with it

    def __call__(self, answer: Answer) -> bool:
        said = words(answer.text)
        runs = list(map(hashed, grams(said, self._n))) or [hashed(said)]
        found = numpy.unique(numpy.array(runs, numpy.uint64))
        bands = self._bands_of(found)
        if any(_similarity(found, self._kept[number]) >= self._similarity for number in self._near(bands)):
            return False
        number = len(self._kept)
        self._before.append(numpy.array([self._last.get(band, -1) for band in bands], numpy.int32))
        self._last.update(dict.fromkeys(bands, number))
        self._kept.append(found)
        return True

    def _near(self, bands: Sequence[int]) -> set[int]:
        """Those that have one of the bands in common."""
        near = set()
        for place, band in enumerate(bands):
            number = self._last.get(band, -1)
            while number >= 0:
                near.add(number)
                number = int(self._before[number][place])
        return near

    def _bands_of(self, found: numpy.ndarray) -> list[int]:
        """Each band's number and content in 64 bits."""
        # Multiply and shift (Dietzfelbinger 1997): the upper half of a product with an odd number.
        least = ((found[:, None] * self._factors) >> numpy.uint64(32)).min(0)
        named = (bytes([number]) + band.tobytes() for number, band in enumerate(least.reshape(_BANDS, -1)))
        return [int.from_bytes(hashlib.blake2b(band, digest_size=8).digest(), "little") for band in named]


def _similarity(one: numpy.ndarray, other: numpy.ndarray) -> float:
    """Jaccard's index."""
    common = len(numpy.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


class Decontaminated:
    """Answers that share no run of words with held-out rows, neither they nor their prompts.

    Args:
        source: a file of rows, of which every text counts.
        n: words of a run; texts with fewer are no matter.
        split: of the source.

    Raises:
        UserError: no such file.
    """

    def __init__(self, source: str, n: int = 8, split: str = "train") -> None:
        rows, self._n = load_dataset(source, split=split), n
        self._held_out: set[int] = set()
        for number in range(len(rows)):
            try:
                row = rows[number]
            except RowError:
                continue
            for text in _texts(row):
                self._held_out.update(map(hashed, grams(words(text), n)))

    def __call__(self, answer: Answer) -> bool:
        asked = [turn.get("content") or "" for turn in answer.turns if turn["role"] == "user"]
        said = (words(text) for text in (*asked, answer.text, answer.thinking))
        return not any(hashed(gram) in self._held_out for text in said for gram in grams(text, self._n))


def _texts(value: object) -> list[str]:
    """All texts in a value, however deep."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inside for text in _texts(part)]
