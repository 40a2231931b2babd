"""Prompts change, answers never do; the same row changes the same way at the same time."""

from types import SimpleNamespace

import pytest
import torch

from distill_tune.data import Augmentations, DropTokens, ReplaceTokens, StepPlan, TokenisedRows, TruncatePrompt
from distill_tune.data.augmentation import special_tokens
from distill_tune.data.batch import Row

TOKENIZER = SimpleNamespace(vocab_size=100, bos_id=1, eos_id=2, special_tokens={"<s>": 1, "<turn>": 50})
TOKENS = torch.tensor([1, *range(10, 30), 50, *range(60, 70), 2], dtype=torch.int32)
LABELS = torch.where(torch.arange(len(TOKENS)) < 22, -100, TOKENS).int()
ROW = Row(TOKENS, LABELS)
ALL = [DropTokens(0.3), ReplaceTokens(0.3), TruncatePrompt(1.0, 0.5)]


def changed(augmentation, place=(0, 0, 0), seed=0):
    return Augmentations([augmentation], TOKENIZER, seed)(ROW, place)


@pytest.mark.parametrize("augmentation", ALL)
def test_answers_special_tokens_and_the_first_token_stay(augmentation):
    for time in range(20):
        row = changed(augmentation, (time, 0, 0))
        assert torch.equal(row.labels[row.labels != -100], TOKENS[22:])
        assert row.tokens[0] == 1
        assert (row.tokens == 50).sum() == 1
        assert len(row.tokens) == len(row.labels)


@pytest.mark.parametrize("augmentation", ALL)
def test_it_is_a_function_of_seed_epoch_and_row(augmentation):
    def tokens(place, seed=0):
        return changed(augmentation, place, seed).tokens.tolist()

    assert tokens((3, 0, 7)) == tokens((3, 0, 7))
    others = [tokens((4, 0, 7)), tokens((3, 1, 7)), tokens((3, 0, 8)), tokens((3, 0, 7), seed=1)]
    assert all(other != tokens((3, 0, 7)) for other in others)


def test_each_does_what_it_says():
    dropped = [22 - int((changed(DropTokens(0.3), (n, 0, 0)).labels == -100).sum()) for n in range(200)]
    assert sum(dropped) / 200 == pytest.approx(0.3 * 20, rel=0.1)
    replaced = changed(ReplaceTokens(1.0)).tokens
    assert len(replaced) == len(TOKENS)
    assert (replaced[1:21] != TOKENS[1:21]).float().mean() > 0.9
    assert not set(replaced[1:21].tolist()) & {1, 2, 50}
    cut = changed(TruncatePrompt(1.0, 1.0), (5, 0, 0)).tokens
    assert cut.tolist() == [1, *TOKENS[len(TOKENS) - len(cut) + 1 :].tolist()]
    assert torch.equal(changed(TruncatePrompt(0.0)).tokens, TOKENS)


def test_a_plan_takes_changed_rows_and_counts_them():
    count = 8
    tokens, labels = TOKENS.repeat(count), LABELS.repeat(count)
    rows = TokenisedRows(tokens, labels, torch.arange(count + 1) * len(TOKENS), packed=False, max_seq_len=None)
    augmentations = Augmentations([DropTokens(0.5)], TOKENIZER, 0)
    plan, plain = (StepPlan([rows], batch_size=4, augmentations=a) for a in (augmentations, None))
    (batch,) = plan.micro_batches(0, 0)
    assert sorted(batch.lengths) == sorted(plan.lengths(0, 0)) != sorted(plain.lengths(0, 0))
    assert plan.num_supervised(0, 0) == plain.num_supervised(0, 0) == int(batch.supervised.sum())
    (again,) = plan.micro_batches(0, 0)
    assert torch.equal(batch.tokens, again.tokens)
    assert plan.identity != plain.identity


def test_special_tokens_of_torchtunes_tokenizers(student_folder):
    from torchtune.models.llama2 import llama2_tokenizer

    assert {1, 2} <= special_tokens(llama2_tokenizer(str(student_folder / "tokenizer.model")))


@pytest.mark.parametrize("make", [lambda: DropTokens(1.5), lambda: ReplaceTokens(-1), lambda: TruncatePrompt(0.5, 2)])
def test_rates_are_shares(make):
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        make()


@pytest.mark.parametrize(("temperature", "shares"), [(1.0, (0.8, 0.2)), (2.0, (2 / 3, 1 / 3)), (1e9, (0.5, 0.5))])
def test_a_temperature_evens_out_datasets(temperature, shares):
    def rows(count, first):
        tokens = torch.arange(first, first + count * 2, dtype=torch.int32)
        return TokenisedRows(tokens, tokens, torch.arange(count + 1) * 2, packed=False, max_seq_len=None)

    plan = StepPlan([rows(960, 0), rows(240, 10_000)], batch_size=1200, dataset_temperature=temperature)
    (batch,) = plan.micro_batches(0, 0)
    of_first = int((batch.tokens[0, ::2] < 10_000).sum())
    assert of_first / 1200 == pytest.approx(shares[0], abs=0.002)
