"""A row is known by what its teacher reads, wherever it stands."""

import dataclasses
import time

import pytest
import torch

from distill_tune.data import StepPlan, TokenisedRows
from distill_tune.data.augmentation import Augmentations
from distill_tune.data.batch import joined
from distill_tune.data.datasets import IGNORE_INDEX


def rows_of(lengths: list[int], seed: int = 0) -> TokenisedRows:
    tokens = torch.randint(0, 1000, (sum(lengths),), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    labels = tokens.clone()
    labels[offsets[:-1]] = IGNORE_INDEX
    return TokenisedRows(tokens, labels, offsets, packed=False, max_seq_len=64)


class Tokenizer:
    vocab_size = 1000


class Reversed:
    """Turns a prompt round."""

    def __call__(self, tokens, is_prompt, ordinary, random):
        changed = tokens.copy()
        changed[is_prompt] = tokens[is_prompt][::-1]
        return changed, changed == changed


def taken(plan: StepPlan, epoch: int = 0) -> list[tuple[int, bytes]]:
    """The number of each row, and its digest, as the batches have them."""
    batches = [batch for step in range(plan.steps_per_epoch) for batch in plan.micro_batches(epoch, step)]
    return [(row, digest) for batch in batches for (_, row), digest in zip(batch.places, batch.digests, strict=True)]


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 3},
        {"batch_size": 2, "seed": 7, "num_ranks": 2, "rank": 1},
        {"max_tokens_per_batch": 40, "seed": 1},
        {"batch_size": 2, "weights": [3.0]},
    ],
)
def test_a_row_has_one_digest_whatever_the_order_and_the_batches(settings):
    rows = rows_of([5, 9, 5, 12, 7, 30, 8])
    assert len(set(rows.digests)) == len(rows)
    for epoch in (0, 1):
        found = taken(StepPlan([rows], **settings), epoch)
        assert found
        assert all(digest == rows.digests[row] for row, digest in found)


def test_halves_and_copies_of_a_batch_keep_their_rows_digests():
    batch = joined([rows_of([5, 9, 5])[row] for row in range(3)])
    assert sum((half.digests for half in batch.halves()), ()) == batch.digests
    assert batch.to(torch.device("cpu")).digests == batch.digests


def test_another_token_or_another_token_to_learn_is_another_row():
    row = rows_of([8])[0]
    tokens, labels = row.tokens.clone(), row.labels.clone()
    tokens[3] += 1
    labels[5] = IGNORE_INDEX
    first = row.labels.clone()
    first[0] = row.tokens[0]  # is never predicted
    changed = [row, row._replace(tokens=tokens), row._replace(labels=labels), row._replace(tokens=row.tokens[:7])]
    changed[3] = changed[3]._replace(labels=row.labels[:7])
    assert len({joined([one]).digests for one in changed}) == 4
    assert joined([row._replace(labels=first)]).digests == joined([row]).digests


def test_it_is_the_teachers_prompt_that_counts_where_it_has_its_own():
    rows, of_teacher = rows_of([6, 7]), rows_of([9, 11], seed=1)
    behind_its_own = dataclasses.replace(rows, teacher=of_teacher)
    batch = joined([behind_its_own[0], behind_its_own[1]])
    assert batch.digests == batch.for_teacher.digests == of_teacher.digests == behind_its_own.digests
    assert set(of_teacher.digests).isdisjoint(rows.digests)


def test_a_changed_prompt_is_another_row_but_to_a_teacher_with_a_prompt_of_its_own():
    rows = dataclasses.replace(rows_of([12, 12]), is_text=torch.ones(24, dtype=torch.bool))
    rows.labels[:9] = rows.labels[12:21] = IGNORE_INDEX

    def plan(of: TokenisedRows) -> StepPlan:
        return StepPlan([of], batch_size=2, augmentations=Augmentations([Reversed()], Tokenizer(), 0, 1000))

    assert {digest for _, digest in taken(plan(rows))}.isdisjoint(rows.digests)
    behind_its_own = dataclasses.replace(rows, teacher=rows_of([9, 11], seed=1))
    assert {digest for _, digest in taken(plan(behind_its_own))} == set(behind_its_own.digests)


def test_the_plan_of_a_teacher_has_every_row_once_as_the_teacher_reads_it():
    rows, of_teacher = rows_of([6, 7, 30, 8]), rows_of([9, 11, 3, 4], seed=1)
    both = [dataclasses.replace(rows, teacher=of_teacher, teacher_ids=torch.arange(4)), rows_of([5, 6], seed=2)]
    for num_ranks in (1, 3):
        training = [
            StepPlan([both[0]], weights=[2.0], batch_size=2, rank=rank, num_ranks=num_ranks)
            for rank in range(num_ranks)
        ]
        validation = StepPlan([both[1]], batch_size=2, num_ranks=num_ranks)
        plans = [StepPlan.of_teacher([of_rank], 24) for of_rank in training]
        found = sorted(digest for plan in plans for _, digest in taken(plan))
        assert found == sorted(of_teacher.digests)
        steps = range(plans[0].steps_per_epoch)
        keys = sorted(key for step in steps for key in plans[0].record_keys(0, step))
        of_batches = (batch.record_keys for step in steps for plan in plans for batch in plan.micro_batches(0, step))
        assert keys == sorted(key for of_batch in of_batches for key in of_batch) == sorted(both[0].record_keys)
        assert len({*keys, *found}) == 7  # those of the first teacher are their digests
        assert all(sum(batch.lengths) <= 24 for step in steps for batch in plans[0].micro_batches(0, step))
        with_validation = StepPlan.of_teacher([training[0], validation], 24)
        assert with_validation.num_rows == 6
    assert joined([plans[0].datasets[0][2]]).teacher_ids == (2,)


def test_the_digests_of_a_hundred_thousand_rows_take_a_second_or_two():
    rows = rows_of([40] * 100_000)
    started = time.perf_counter()
    assert len(set(rows.digests)) == 100_000
    assert time.perf_counter() - started < 10  # 0.6 s where nothing else runs
