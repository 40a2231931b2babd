"""How near a generated answer is to the one that a row has."""

import dataclasses

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.generation.scores import is_same_answer
from distill_tune.generation.words import words


@dataclasses.dataclass(frozen=True)
class AnswerScore:
    """
    Attributes:
        exact_match: 1 where it is the reference, as ``distill_tune.generation.Match`` compares them, else 0.
        rouge_l: see :func:`rouge_l`.
    """

    exact_match: float
    rouge_l: float


def scored(answer: str, reference: str) -> AnswerScore:
    return AnswerScore(float(is_same_answer(answer, reference)), rouge_l(answer, reference))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L (Lin 2004): of the longest common subsequence of words the harmonic mean of its shares in both.

    Words are in lower case and without punctuation, not stemmed: on English text this is what the package rouge-score
    gives. Of writing without spaces between words, as Chinese and Japanese, each character is a word; that package
    drops whatever is not a Latin letter.

    Returns:
        0 to 1; 0 where one of both has no words.
    """
    ours, theirs = words(answer), words(reference)
    if not ours or not theirs:
        return 0.0
    return 2 * longest_common_subsequence(ours, theirs) / (len(ours) + len(theirs))


def longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Its length. A column of the table is the bits of one number (Hyyrö 2004): quick for long answers, too."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    column = every  # a bit is 0 where the length rises
    for word in second:
        common = column & places.get(word, 0)
        column = ((column + common) | (column - common)) & every
    return len(first) - column.bit_count()
