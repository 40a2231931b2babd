import pytest

from distill_tune.generation.repetition import ends_in_repetition


@pytest.mark.parametrize(
    ("tokens", "times", "wanted"),
    [
        ([1, 5, 5, 5], 3, True),
        ([1, 5, 5], 3, False),
        ([5, 5, 5, 1], 3, False),
        ([9, 1, 2, 3, 1, 2, 3], 2, True),
        ([9, 1, 2, 3, 1, 2, 3], 3, False),
        ([1, 2, 3, 1, 2, 4], 2, False),
        ([2, 1, 1, 2, 1, 1], 3, False),
        ([*range(32), *range(32)], 2, True),
        ([*range(33), *range(33)], 2, False),
        ([], 2, False),
    ],
)
def test_the_same_few_tokens_again_and_again(tokens, times, wanted):
    assert ends_in_repetition(tokens, times) == wanted
