"""In which batches a teacher is asked about rows, whatever comes before what it expects."""

import torch

from distill_tune.data.batch import Batch, joined
from distill_tune.training.missing_rows import MissingRows


def batch_of(*numbers: int) -> Batch:
    return joined([(torch.full((3,), number), torch.full((3,), number)) for number in numbers])


def keys_of(batches) -> list[tuple[bytes, ...]]:
    return [batch.record_keys for batch in batches]


def missing(*numbers: int, of_steps: tuple[int, ...] = ()) -> MissingRows:
    return MissingRows(batch_of(*numbers).record_keys, frozenset(batch_of(*(of_steps or numbers)).record_keys))


def test_a_row_is_asked_about_in_the_batch_that_is_expected_first():
    rows = missing(1, 2, 3, 4, 5, of_steps=(1, 2, 3, 4))
    expected = rows.expected([batch_of(1, 2), batch_of(9), batch_of(2, 3, 3), batch_of(4), batch_of(4, 1)])
    first, second = next(expected), next(expected)
    assert keys_of([first, second]) == keys_of([batch_of(1, 2), batch_of(3)])
    asked = rows.asked_for([batch_of(5, 3), batch_of(3, 5)])  # as of a validation meanwhile
    assert keys_of(asked) == keys_of([batch_of(5), batch_of(3)]) and asked[1] is second
    assert keys_of(rows.asked_for([batch_of(5, 3)])) == keys_of(asked)  # until it is asked
    for batch in asked:
        rows.forget(batch)
        rows.remove(batch.record_keys)
    assert rows.num_of_steps == 3 and len(rows) == 3
    assert keys_of(expected) == keys_of([batch_of(4)])
    assert rows.asked_for([batch_of(5, 3)]) == []


def test_what_another_rank_has_asked_about_is_still_taken_as_it_was_expected_here():
    rows = missing(1, 2, 3)
    (expected,) = rows.expected([batch_of(1, 2)])
    rows.remove(batch_of(1, 2).record_keys)
    assert rows.asked_for([batch_of(1, 3)])[0] is expected


def test_after_a_failure_a_row_is_asked_about_in_what_comes_then():
    rows = missing(1, 2)
    (whole,) = rows.asked_for([batch_of(1, 2)])
    rows.forget(whole)
    assert keys_of(rows.asked_for([batch_of(2)])) == keys_of([batch_of(2)])
