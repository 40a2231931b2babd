"""Numbers and durations in words."""

import pytest

from distill_tune.counts import counted, rough_duration


def test_what_is_counted_has_its_plural():
    assert [counted(1, "row"), counted(1200, "row"), counted(2, "batch")] == ["1 row", "1,200 rows", "2 batches"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "0 s"), (7, "7 s"), (99, "99 s"), (720, "12 min"), (12_240, "3.4 h"), (4e6, "1,111.1 h")],
)
def test_a_duration_is_told_roughly(seconds, told):
    assert rough_duration(seconds) == told
