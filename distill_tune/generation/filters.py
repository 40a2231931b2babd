"""Which answers are kept: each of these says of one answer whether it is. A filter of one's own is a function of it."""

import collections
import dataclasses
import unicodedata
from collections.abc import Sequence

from distill_tune.generation.answers import FINISHED, Answer
from distill_tune.generation.repetition import ends_in_repetition
from distill_tune.generation.words import grams, words

_CIRCLES = 8  # times that an answer says its last tokens at its end


@dataclasses.dataclass(frozen=True)
class Finished:
    """Answers that have come to their own end; those that were cut are left out."""

    def __call__(self, answer: Answer) -> bool:
        return answer.finish_reason == FINISHED


@dataclasses.dataclass(frozen=True)
class Length:
    """Answers of so many tokens, the end and a thought counted.

    Args:
        least, most: tokens; None for no bound.
    """

    least: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise ValueError("needs least or most, in tokens")

    def __call__(self, answer: Answer) -> bool:
        return (self.least or 0) <= len(answer.tokens) and (self.most is None or len(answer.tokens) <= self.most)


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Answers that do not say the same again and again, and do not end in going round in circles.

    Args:
        n: words, or characters of Chinese and the like, in a row.
        most: share of such that are there once more already; above it an answer is left out.
    """

    n: int = 4
    most: float = 0.3

    def __call__(self, answer: Answer) -> bool:
        if ends_in_repetition(answer.tokens, _CIRCLES):
            return False
        said = list(grams(words(answer.text), self.n))
        return not said or 1 - len(set(said)) / len(said) <= self.most


@dataclasses.dataclass(frozen=True)
class Scripts:
    """Answers in these scripts: a model that falls into another language mostly falls into another script.

    Args:
        allowed: as Unicode names begin: LATIN, CJK, HIRAGANA, CYRILLIC, ARABIC and so on; one, or a list.
        least: share of an answer's letters that must be of these.
    """

    allowed: str | Sequence[str]
    least: float = 0.95

    def __call__(self, answer: Answer) -> bool:
        letters = collections.Counter(filter(str.isalpha, answer.text))
        names = tuple(name.upper() for name in ([self.allowed] if isinstance(self.allowed, str) else self.allowed))
        found = sum(n for letter, n in letters.items() if unicodedata.name(letter, "").startswith(names))
        return found >= self.least * letters.total()
