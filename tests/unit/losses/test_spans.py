"""Which rows of both sides write the same bytes."""

import torch
from aligned_rows import SPANS, example, positions_of

from distill_tune.losses.spans import spans_of, sums_of_spans


def rows_of(positions, num_teacher_rows):
    """[(student's rows, teacher's rows)] of each span."""
    spans = spans_of(positions, num_teacher_rows)
    found = []
    for number in range(len(spans)):
        mine, theirs = ((of == number).nonzero()[:, 0].tolist() for of in (spans.of_student, spans.of_teacher))
        assert (mine[0], theirs[0]) == (spans.first[number], spans.first_of_teacher[number])
        found.append((mine, theirs))
    assert all(int(of.max()) <= len(spans) for of in (spans.of_student, spans.of_teacher) if len(of))
    return found


def test_spans_reach_from_one_common_boundary_to_the_next():
    _, teacher, _, word, rows = example()
    assert rows_of(word.positions, len(teacher)) == rows
    assert len(rows) == len(SPANS)


def test_a_span_with_a_masked_token_is_left_out_wherever_it_stands():
    for masked in range(13):
        _, teacher, _, word, rows = example(masked=[masked])
        assert len(rows) == len(SPANS) - 1
        assert rows_of(word.positions, len(teacher)) == rows


def test_masked_tokens_between_two_spans_leave_both():
    whole = positions_of([3, 2, 2, 3], [3, 4, 3])

    positions = whole.among(torch.tensor([0, 1, 2, 5]), 6)  # the student has two tokens more, the teacher none of them
    assert rows_of(positions, 3) == [([0], [0]), ([1, 2], [1]), ([5], [2])]


def test_a_span_that_ends_within_a_token_of_the_teacher_is_left_out():
    positions = positions_of([3, 4, 3], [3, 6, 3])  # the teacher has 2 bytes more in the middle
    assert rows_of(positions, 3) == [([0], [0])]
    positions.at[2] = positions.last[2] = 2
    positions.boundary[2] = positions.ends[2] = True
    assert rows_of(positions, 3) == [([0], [0]), ([2], [2])]


def test_a_token_that_begins_with_a_space_before_the_teachers_text_is_in_none():
    positions = positions_of([3, 4, 3, 2], [3, 6, 3, 2])
    # The second token ends within the teacher's; the third is the first of the next answer.
    positions.at[2:] = positions.last[2:] = torch.tensor([2, 3])
    positions.boundary[2:] = torch.tensor([False, True])
    positions.ends[2:] = True
    assert rows_of(positions, 4) == [([0], [0]), ([3], [3])]


def test_tokens_that_the_teacher_has_beyond_a_span_are_in_none():
    assert rows_of(positions_of([3, 4], [3, 4, 2]), 3) == [([0], [0]), ([1], [1])]


def test_nothing_known_is_no_span():
    assert rows_of(positions_of([3, 2], [5], masked=[0, 1]), 1) == []
    assert rows_of(positions_of([3, 2], [5], masked=[0, 1]), 0) == []


def test_sums_are_those_of_the_spans_alone():
    _, teacher, _, word, rows = example(masked=[4])
    values = torch.arange(1.0, 1 + len(teacher))
    spans = spans_of(word.positions, len(teacher))
    wanted = [values[theirs].sum().item() for _, theirs in rows]
    assert sums_of_spans(values, spans.of_teacher, len(spans)).tolist() == wanted
