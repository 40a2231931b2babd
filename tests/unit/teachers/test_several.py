"""Which teachers go together."""

import pytest

from distill_tune.errors import UserError
from distill_tune.losses import ForwardKL
from distill_tune.teachers import SeveralTeachers, Teacher


class Of(Teacher):
    """Gives records of a kind, or whole distributions."""

    def __init__(self, record_kind):
        self.record_kind = record_kind


@pytest.mark.parametrize("kinds", [("sampled", "top_k"), ("top_k", ""), ("", "sampled")])
def test_rows_of_records_and_of_other_signals_are_refused_before_anything_is_loaded(kinds):
    of_each = list(map(Of, kinds))
    with pytest.raises(
        UserError, match=rf"by_row.*\(a: {kinds[0] or 'none'}, b: {kinds[1] or 'none'}\); take one kind"
    ):
        SeveralTeachers(of_each, [1.0, 1.0], ["a", "b"], "by_row").require_loss(ForwardKL(), None, 1.0)
    SeveralTeachers(of_each, [1.0, 1.0], ["a", "b"], "sum").require_loss(ForwardKL(), None, 1.0)


def test_rows_of_one_kind_go_together():
    for kind in ("", "sampled", "top_k"):
        SeveralTeachers([Of(kind), Of(kind)], [1.0, 1.0], ["a", "b"], "by_row").require_loss(ForwardKL(), None, 1.0)
