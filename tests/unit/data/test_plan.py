import dataclasses
from collections import Counter

import pytest
import torch

from distill_tune.data import Batch, StepPlan, TokenisedRows
from distill_tune.data.shape import Shape
from distill_tune.errors import UserError


def rows(count: int, first: int = 0, packed: bool = False, length: int = 4) -> TokenisedRows:
    """Row i is ``length`` times the token first + i."""
    tokens = torch.arange(first, first + count, dtype=torch.int32).repeat_interleave(length)
    return TokenisedRows(tokens, tokens, torch.arange(count + 1) * length, packed=packed, max_seq_len=10)


def seen(plan: StepPlan, epoch: int) -> list[int]:
    steps = [plan.micro_batches(epoch, step) for step in range(plan.steps_per_epoch)]
    return [row for batches in steps for batch in batches for row in rows_in(batch)]


def rows_in(batch: Batch) -> list[int]:
    """The rows of a batch, told by their first token; an empty one has none."""
    return [int(row[0]) for row in batch.tokens[0].split(batch.lengths)] if batch.places else []


def test_the_order_is_a_function_of_seed_and_epoch():
    assert seen(StepPlan([rows(20)], batch_size=2, seed=1), 3) == seen(StepPlan([rows(20)], batch_size=2, seed=1), 3)
    plan = StepPlan([rows(20)], batch_size=2, seed=1)
    assert seen(plan, 0) != seen(plan, 1)
    assert sorted(seen(plan, 0)) == list(range(20))
    assert seen(StepPlan([rows(20)], batch_size=2, shuffle=False), 5) == list(range(20))


def test_the_rows_of_a_step_do_not_depend_on_the_micro_batch():
    cut = [StepPlan([rows(24)], batch_size=b, gradient_accumulation_steps=8 // b) for b in (8, 4, 1)]
    steps = [{row for batch in plan.micro_batches(1, 2) for row in rows_in(batch)} for plan in cut]
    assert steps[0] == steps[1] == steps[2]


def test_weights_are_shares_of_an_epoch_of_the_same_length():
    plan = StepPlan([rows(30), rows(10, first=100)], weights=[1, 3], batch_size=4, seed=0)
    counts = Counter(token >= 100 for token in seen(plan, 0))
    assert counts == {False: 10, True: 30}
    assert seen(plan, 0) != seen(plan, 1)


def test_packs_keep_rows_whole_and_apart():
    plan = StepPlan([rows(5, packed=True)], batch_size=3, shuffle=False)
    (batch,) = plan.micro_batches(0, 0)
    assert batch.tokens.tolist() == [[0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4]
    assert batch.lengths == (4, 4, 4, 4, 4)
    attention = batch.attention()
    assert attention["input_pos"][0].tolist() == [0, 1, 2, 3] * 5
    assert attention["mask"].lengths == (4, 4, 4, 4, 4)
    assert batch.targets[0, :8].tolist() == [0, 0, 0, -100, 1, 1, 1, -100]
    assert StepPlan([rows(5, packed=True)], batch_size=1).steps_per_epoch == 3


def test_a_batch_of_so_many_tokens_has_as_many_rows_as_fit():
    lengths = torch.tensor([3, 9, 1, 4, 4, 2, 8, 7])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tokens = torch.arange(8, dtype=torch.int32).repeat_interleave(lengths)
    several = TokenisedRows(tokens, tokens, offsets, packed=False, max_seq_len=None)
    plan = StepPlan([several], max_tokens_per_batch=10, shuffle=False)
    assert [batch.lengths for batch in plan.epoch()] == [(3,), (9, 1), (4, 4, 2), (8,), (7,)]
    plan = StepPlan([several], max_tokens_per_batch=12, seed=3)
    assert sorted(seen(plan, 0)) == sorted(seen(plan, 1)) == list(range(8))
    assert seen(plan, 0) != seen(plan, 1)
    assert all(sum(batch.lengths) <= 12 for batch in plan.epoch())
    with pytest.raises(UserError, match="max_tokens_per_batch=8: the longest row has 9 tokens"):
        StepPlan([several], max_tokens_per_batch=8)


def test_ranks_and_micro_batches_get_about_as_many_tokens():
    lengths = torch.randint(2, 200, (64,), generator=torch.Generator().manual_seed(0))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    tokens = torch.zeros(int(lengths.sum()), dtype=torch.int32)
    several = TokenisedRows(tokens, tokens, offsets, packed=False, max_seq_len=None)
    plans = [
        StepPlan([several], batch_size=8, gradient_accumulation_steps=2, rank=rank, num_ranks=4) for rank in range(4)
    ]
    batches = [batch for plan in plans for batch in plan.micro_batches(0, 0)]
    sizes = [sum(batch.lengths) for batch in batches]
    assert [len(batch.lengths) for batch in batches] == [8] * 8
    assert sum(sizes) == int(lengths.sum()) == sum(plans[0].shape(0, 0).lengths)
    assert max(sizes) / min(sizes) < 1.15
    assert plans[0].num_supervised(0, 0) == sum(len(batch.supervised_positions) for batch in batches)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("batch_size", "accumulation", "num_ranks"), [(4, 1, 1), (1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_what_does_not_fill_a_last_step_makes_a_shorter_one(packed, batch_size, accumulation, num_ranks):
    several = [rows(14 if packed else 7, packed=packed)]  # two rows to a packed sequence
    plans = [
        StepPlan(several, batch_size=batch_size, gradient_accumulation_steps=accumulation, shuffle=False,
                 rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]  # fmt: skip
    assert {plan.steps_per_epoch for plan in plans} == {2}
    assert sorted(row for plan in plans for row in seen(plan, 0)) == list(range(len(several[0])))
    last = [plan.micro_batches(0, 1) for plan in plans]
    assert len({len(batches) for batches in last}) == 1
    supervised = sum(len(batch.supervised_positions) for batches in last for batch in batches)
    assert {plan.num_supervised(0, 1) for plan in plans} == {supervised} == {3 * len(several[0]) // 7 * 3}
    assert sum(plans[0].shape(0, 1).lengths) == 4 * len(several[0]) // 7 * 3


def test_a_rank_without_a_row_in_a_short_step_has_as_many_micro_batches():
    plans = [
        StepPlan([rows(18)], batch_size=2, gradient_accumulation_steps=2, shuffle=False, rank=rank, num_ranks=4)
        for rank in range(4)
    ]
    found = [[rows_in(batch) for batch in plan.micro_batches(0, 1)] for plan in plans]
    assert found == [[[17]], [[16]], [[]], [[]]]
    assert [batch.lengths for batch in plans[3].micro_batches(0, 1)] == [(1,)]
    assert not len(plans[3].micro_batches(0, 1)[0].supervised_positions)


def test_a_short_step_has_no_empty_micro_batch_on_one_device():
    plan = StepPlan([rows(9)], batch_size=2, gradient_accumulation_steps=4, shuffle=False)
    assert [rows_in(batch) for batch in plan.micro_batches(0, 1)] == [[8]]
    assert plan.shapes(0, 1) == [Shape((4,), (3,))]


def of_lengths(lengths, teacher_lengths=None):
    def rows_of(counts):
        tokens = torch.ones(sum(counts), dtype=torch.int32)
        return TokenisedRows(tokens, tokens, torch.tensor([0, *counts]).cumsum(0), packed=False, max_seq_len=None)

    return dataclasses.replace(rows_of(lengths), teacher=rows_of(teacher_lengths) if teacher_lengths else None)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"max_tokens_per_batch": 40}], ids=str)
def test_no_micro_batch_of_any_rank_and_step_is_larger_than_those_of_the_longest_rows(num_ranks, settings):
    lengths = [3, 4, 5] * 20 + [30, 40, 35]
    plans = [
        StepPlan(
            [of_lengths(lengths)], gradient_accumulation_steps=2, seed=0, rank=rank, num_ranks=num_ranks, **settings
        )
        for rank in range(num_ranks)
    ]
    most = max(sum(shape.lengths) for shape in plans[0].largest_shapes)
    assert most >= 40
    for plan in plans:
        for epoch in range(20):
            for step in range(plan.steps_per_epoch):
                assert all(sum(shape.lengths) <= most for shape in plan.shapes(epoch, step))


def test_a_short_last_step_of_the_longest_rows_has_no_larger_micro_batch():
    plan = StepPlan(
        [of_lengths([5] * 8 + [100] * 2)], batch_size=2, gradient_accumulation_steps=4, shuffle=False
    )  # whose last step has both long rows
    most = max(sum(shape.lengths) for shape in plan.largest_shapes)
    assert max(sum(shape.lengths) for shape in plan.shapes(0, 1)) <= most


def test_short_rows_go_together_up_to_what_the_longest_take():
    lengths = [10, 20, 30, 40, 100, 90] + [10] * 18
    plan = StepPlan([of_lengths(lengths)], batch_size=2, gradient_accumulation_steps=4, shuffle=False)
    assert max(sum(shape.lengths) for shape in plan.largest_shapes) == 100
    assert [[sum(shape.lengths) for shape in plan.shapes(0, step)] for step in range(3)] == [
        [100, 90, 60, 60],
        [80],
        [80],
    ]


def test_short_rows_go_together_up_to_what_the_teacher_reads_of_the_longest():
    settings = {"batch_size": 1, "gradient_accumulation_steps": 4, "shuffle": False}
    plan = StepPlan([of_lengths([9, 5, 5, 5], [40, 8, 8, 8])], **settings)
    assert [shape.lengths for shape in plan.shapes(0, 0)] == [(9,), (5,), (5,), (5,)]
    plan = StepPlan([of_lengths([20, 5, 5, 5], [40, 8, 8, 8])], **settings)
    assert [shape.teacher_lengths for shape in plan.shapes(0, 0)] == [(40,), (8, 8, 8)]
    plan = StepPlan([of_lengths([20, 5, 5, 5], [20, 8, 8, 8])], **settings)
    assert [shape.teacher_lengths for shape in plan.shapes(0, 0)] == [(20,), (8, 8), (8,)]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_a_device_can_hold_bounds_later_micro_batches_but_a_row_alone(num_ranks):
    rows_of_all = of_lengths([50] + [10] * 15, [100] + [20] * 15)
    plan = StepPlan([rows_of_all], batch_size=16 // num_ranks, shuffle=False, num_ranks=num_ranks)
    whole = plan.micro_batches(0, 0)
    assert len(whole) == 1
    plan.take_at_most(whole[0].halves())
    again = StepPlan([rows_of_all], batch_size=16 // num_ranks, shuffle=False, num_ranks=num_ranks)
    again.limits = plan.limits
    found = [[len(shape.lengths) for shape in each.shapes(0, 0)] for each in (plan, again)]
    assert found[0] == found[1]
    assert 2 <= len(found[0]) <= 3 and 0 not in found[0]
    plan.limits = [30, 60, 30]  # less than the longest row alone
    sizes = [sum(shape.lengths) for shape in plan.shapes(0, 0)]
    assert sizes.count(50) == 1 and all(0 < size <= 30 or size == 50 for size in sizes)


def test_what_is_learned_of_short_rows_is_bounded_too():
    long = of_lengths([100] * 4)
    long = dataclasses.replace(long, labels=torch.where(torch.arange(400) % 100 < 95, -100, long.labels))
    plan = StepPlan([long, of_lengths([10] * 60)], batch_size=4, gradient_accumulation_steps=8, seed=0)
    shapes = [shape for step in range(plan.steps_per_epoch) for shape in plan.shapes(0, step)]
    assert max(shape.num_supervised for shape in shapes) == 9 * 4
    assert max(shape.num_supervised for shape in plan.largest_shapes) >= 9 * 4


def test_rows_that_weights_repeat_are_as_often_among_the_longest():
    datasets = [of_lengths([1000]), of_lengths([10] * 99)]
    plan = StepPlan(datasets, weights=[1, 1], batch_size=4, shuffle=False)
    assert [len(plan.shapes(0, step)) for step in range(plan.steps_per_epoch)] == [1] * 25


def test_the_rows_that_are_longest_for_the_teacher_are_among_the_largest():
    plan = StepPlan([of_lengths([9, 2, 2, 2], teacher_lengths=[9, 2, 50, 2])], batch_size=1)
    assert Shape((9,), (8,), (9,)) in plan.largest_shapes
    assert Shape((2,), (1,), (50,)) in plan.largest_shapes


def test_a_step_is_told_as_student_and_teacher_read_it():
    plan = StepPlan([of_lengths([9, 2, 4], teacher_lengths=[10, 3, 50])], batch_size=2, shuffle=False)
    assert plan.shape(0, 0) == Shape((9, 2), (8, 1), (10, 3))
    assert plan.shape(0, 1).for_teacher == Shape((50,), (3,))


def test_weights_count_the_sequences_of_a_short_last_step_too():
    plan = StepPlan([rows(7), rows(4, first=100)], weights=[1, 3], batch_size=4, seed=0)
    assert plan.steps_per_epoch == 3
    assert Counter(token >= 100 for token in seen(plan, 0)) == {False: 3, True: 8}


def test_a_short_last_step_is_the_same_whatever_was_taken_before():
    plan, again = (StepPlan([rows(10)], batch_size=4, seed=2) for _ in range(2))
    seen(plan, 1)
    assert [rows_in(batch) for batch in plan.micro_batches(1, 2)] == [rows_in(b) for b in again.micro_batches(1, 2)]
    assert sorted(seen(plan, 1)) == list(range(10))


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (
            {"batch_size": 4, "gradient_accumulation_steps": 2},
            "dataset: has 3 rows, but one step takes 8 (batch_size=4 x gradient_accumulation_steps=2)",
        ),
        (
            {"max_tokens_per_batch": 4, "num_ranks": 4},
            "dataset: has 3 batches, but one step takes 4 (max_tokens_per_batch=4, gradient_accumulation_steps=1 x 4 "
            "processes)",
        ),
    ],
)
def test_an_epoch_that_is_no_whole_step_is_told(plan, told):
    short = StepPlan([rows(3)], **plan)
    assert short.steps_per_epoch == 1
    assert short.remarks == [f"{told}: each epoch is one short step"]
    assert StepPlan([rows(8)], **plan).remarks == []
    assert StepPlan([rows(1)], batch_size=4).remarks[0].startswith("dataset: has 1 row, but one step takes 4 ")


def test_validation_takes_every_row_once_in_batches_of_which_the_last_may_be_short():
    batches = list(StepPlan([rows(3)], batch_size=2, shuffle=False).epoch())
    assert [rows_in(batch) for batch in batches] == [[0, 1], [2]]
