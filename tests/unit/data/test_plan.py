from collections import Counter

import pytest
import torch

from distill_tune.data import StepPlan, TokenisedRows
from distill_tune.errors import UserError


def rows(count: int, first: int = 0, packed: bool = False, length: int = 4) -> TokenisedRows:
    """Row i is ``length`` times the token first + i."""
    tokens = torch.arange(first, first + count, dtype=torch.int32).repeat_interleave(length)
    return TokenisedRows(tokens, tokens, torch.arange(count + 1) * length, packed=packed, max_seq_len=10)


def seen(plan: StepPlan, epoch: int) -> list[int]:
    steps = [plan.micro_batches(epoch, step) for step in range(plan.steps_per_epoch)]
    return [int(row[0]) for batches in steps for batch in batches for row in batch.tokens]


def test_the_order_is_a_function_of_seed_and_epoch():
    assert seen(StepPlan([rows(20)], batch_size=2, seed=1), 3) == seen(StepPlan([rows(20)], batch_size=2, seed=1), 3)
    plan = StepPlan([rows(20)], batch_size=2, seed=1)
    assert seen(plan, 0) != seen(plan, 1)
    assert sorted(seen(plan, 0)) == list(range(20))
    assert seen(StepPlan([rows(20)], batch_size=2, shuffle=False), 5) == list(range(20))


def test_the_rows_of_a_step_do_not_depend_on_the_micro_batch():
    cut = [StepPlan([rows(24)], batch_size=b, gradient_accumulation_steps=8 // b) for b in (8, 4, 1)]
    steps = [{int(row[0]) for batch in plan.micro_batches(1, 2) for row in batch.tokens} for plan in cut]
    assert steps[0] == steps[1] == steps[2]


def test_weights_are_shares_of_an_epoch_of_the_same_length():
    plan = StepPlan([rows(30), rows(10, first=100)], weights=[1, 3], batch_size=4, seed=0)
    counts = Counter(token >= 100 for token in seen(plan, 0))
    assert counts == {False: 10, True: 30}
    assert seen(plan, 0) != seen(plan, 1)


def test_packs_keep_rows_whole_and_apart():
    plan = StepPlan([rows(5, packed=True)], batch_size=3, shuffle=False)
    (batch,) = plan.micro_batches(0, 0)
    assert batch.tokens.tolist() == [[0] * 4 + [1] * 4, [2] * 4 + [3] * 4, [4] * 4 + [0] * 4]
    assert batch.lengths == ((4, 4), (4, 4), (8,))
    attention = batch.attention()
    assert attention["input_pos"][0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert not attention["mask"][0, 4:, :4].any()
    assert batch.targets[0].tolist() == [0, 0, 0, -100, 1, 1, 1, -100]


def test_too_few_rows_for_a_step_say_so():
    with pytest.raises(UserError, match=r"has 3 rows, but one step takes 8 \(batch_size=4 x gradient_acc"):
        _ = StepPlan([rows(3)], batch_size=4, gradient_accumulation_steps=2).steps_per_epoch


def test_validation_takes_every_row_once_in_batches_of_which_the_last_may_be_short():
    batches = list(StepPlan([rows(3)], batch_size=2, shuffle=False).epoch())
    assert [batch.tokens[:, 0].tolist() for batch in batches] == [[0, 1], [2]]
