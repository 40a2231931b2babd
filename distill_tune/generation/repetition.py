"""Answers that go round in circles."""

from collections.abc import Sequence

_LONGEST = 32  # tokens that are said again and again


def ends_in_repetition(tokens: Sequence[int], times: int) -> bool:
    """Whether the last tokens are the same few, at most 32, so many times one after another."""
    for size in range(1, min(_LONGEST, len(tokens) // times) + 1):
        if tokens[-1] == tokens[-1 - size]:
            start = len(tokens) - size * times
            if tokens[start + size :] == tokens[start : len(tokens) - size]:
                return True
    return False
