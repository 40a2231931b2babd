"""The prompt of a row, and the row with another answer."""

import torch

from distill_tune.data.batch import Row
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.rollouts.prompts import answered, prompt_lengths, prompt_of

# Labels of rows, 0 for what is not learned: an answer, two of them, one from the first token on, none, one at the end.
LEARNED = [[0, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1, 1], [1, 1, 1], [0, 0], [0, 0, 0, 1]]
BEFORE_THE_LAST = [2, 5, 0, 2, 3]


def labels(learned):
    return torch.tensor([9 if one else -100 for one in learned], dtype=torch.int32)


def test_a_prompt_ends_where_the_last_learned_span_begins():
    offsets = torch.tensor([0, *map(len, LEARNED)]).cumsum(0)
    flat = torch.cat([labels(row) for row in LEARNED])
    rows = TokenisedRows(torch.arange(len(flat), dtype=torch.int32), flat, offsets, packed=False, max_seq_len=None)
    assert prompt_lengths(rows).tolist() == BEFORE_THE_LAST
    assert [len(prompt_of(*rows[row][:2])) for row in range(len(rows))] == BEFORE_THE_LAST


def test_an_answer_takes_the_place_of_the_last_one_and_nothing_else_is_learned():
    tokens = torch.arange(10, 17, dtype=torch.int32)
    row = answered(Row(tokens, labels(LEARNED[1]), teacher_id=3, place=(1, 2)), [5, 6])
    assert row.tokens.tolist() == [10, 11, 12, 13, 14, 5, 6]
    assert row.labels.tolist() == [-100] * 5 + [5, 6]
    assert (row.teacher_tokens, row.teacher_id, row.place) == (None, 3, (1, 2))


def test_it_stands_behind_the_teachers_own_prompt_as_well():
    short, long = torch.tensor([1, 7], dtype=torch.int32), torch.tensor([1, 3, 3, 7], dtype=torch.int32)
    row = answered(Row(short, labels([0, 1]), long, labels([0, 0, 0, 1])), [5, 6])
    assert row.tokens.tolist() == [1, 5, 6]
    assert row.teacher_tokens.tolist() == [1, 3, 3, 5, 6]
    assert row.teacher_labels.tolist() == [-100] * 3 + [5, 6]


def test_no_answer_teaches_nothing():
    row = answered(Row(torch.tensor([1, 7], dtype=torch.int32), labels([0, 1])), [])
    assert row.tokens.tolist() == [1]
    assert row.labels.tolist() == [-100]
