"""Each token of a document is predicted once, from as much before it as there is room for."""

import pytest

from distill_tune.errors import UserError
from distill_tune.evaluation import Window, windows


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 13, 40, 41])
@pytest.mark.parametrize(("context", "stride"), [(8, None), (8, 7), (8, 1), (2, 1), (None, None)])
def test_every_token_but_the_first_is_predicted_once(length, context, stride):
    found = windows(length, context, stride)
    predicted = [token for start, stop, first in found for token in range(first, stop)]
    assert predicted == list(range(1, length))
    for start, stop, first in found:
        assert 0 <= start < stop <= length and stop - start <= (context or length) and start < first


def test_a_document_that_fits_is_one_window():
    assert windows(8, 8) == [Window(0, 8, 1)]


def test_each_token_has_at_least_the_context_without_the_stride_before_it():
    for start, _, first in windows(100, 16, 5)[1:]:
        assert first - start >= 16 - 5


@pytest.mark.parametrize("stride", [8, 9])
def test_a_stride_that_leaves_nothing_to_predict_from_is_refused(stride):
    with pytest.raises(UserError, match=rf"stride={stride}: must be from 1 to 7"):
        windows(20, 8, stride)
