"""How far records are from each other, told of each kind."""

import dataclasses

import pytest
import torch

from distill_tune.cache import Agreement
from distill_tune.losses import SampledTokens, TokenLikelihoods, TopTokens


@pytest.fixture
def logits():
    return torch.randn(40, 60, generator=torch.Generator().manual_seed(0)) * 2


def drawn(logits, seed=0):
    return SampledTokens.drawn(logits, 20, 1.0, torch.Generator().manual_seed(seed))


def test_the_same_draws_are_the_same_in_whatever_order_and_others_are_not(logits):
    record = drawn(logits)
    turned = dataclasses.replace(record, ids=record.ids.flip(1), weights=record.weights.flip(1))
    assert Agreement.of(record, turned) == Agreement("entropies, in nats", 1.0, 0.0, 0.0)
    assert Agreement.of(record, drawn(logits, seed=1)).same < 0.2
    off = dataclasses.replace(record, entropy=record.entropy + torch.tensor([0.5, *[0.0] * 39]))
    assert Agreement.of(record, off).largest == pytest.approx(0.5)


def test_log_probabilities_are_compared_token_by_token(logits):
    record = TopTokens.of(logits, 5)
    off = dataclasses.replace(record, ids=record.ids.flip(1), log_probs=record.log_probs.flip(1) + 0.25)
    found = Agreement.of(record, off)
    assert (found.mean, found.largest) == pytest.approx((0.25, 0.25))
    assert found.same == 0
    assert Agreement.of(record, TopTokens.of(-logits, 5)).mean == torch.inf
    assert Agreement.of(record, record) == Agreement("log-probabilities", 1.0, 0.0, 0.0)


def test_likelihoods_are_compared_one_by_one():
    record = TokenLikelihoods(torch.tensor([-1.0, -2.0, -torch.inf, -4.0]), 1.0, 60)
    off = dataclasses.replace(record, log_probs=record.log_probs - torch.tensor([0.0, 0.5, 0.0, 0.0]))
    told = "log-probabilities of the rows' own tokens"
    assert Agreement.of(record, off) == Agreement(told, 0.75, 0.125, 0.5)


def test_hidden_states_are_compared_by_their_length():
    hidden = torch.randn(10, 8)
    assert Agreement.of(hidden * 1.01, hidden).largest == pytest.approx(0.01, rel=1e-3)
