"""The figures of an export beside its source."""

import math

import pytest
import torch

from distill_tune.export.compared import agreement


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_figures_are_those_of_float64_over_all_positions():
    source, other = [logits(1, 5, 9), logits(2, 3, 9)], [logits(3, 5, 9), logits(4, 3, 9)]
    found = agreement(source, other)
    p, q = (torch.cat(rows).double().softmax(-1) for rows in (source, other))
    assert found.tokens == 8
    assert found.kl == pytest.approx((p * (p / q).log()).sum(-1).mean().item(), rel=1e-12)
    assert found.max_difference == pytest.approx((torch.cat(source) - torch.cat(other)).abs().max().item(), rel=1e-6)
    assert found.top == (p.argmax(-1) == q.argmax(-1)).double().mean().item()


def test_a_model_agrees_with_itself_wholly_and_padding_does_not_count():
    one = logits(1, 5, 9)
    padded = torch.cat([one, torch.full((5, 3), 50.0)], -1)
    for found in (agreement([one], [one]), agreement([one], [padded]), agreement([padded], [one])):
        assert (found.max_difference, found.top) == (0, 1)
        assert abs(found.kl) < 1e-12


def test_what_is_no_number_is_no_small_difference():
    broken = logits(1, 5, 9)
    broken[2, 3] = math.nan
    found = agreement([logits(1, 5, 9)], [broken])
    assert found.max_difference == math.inf
    assert not found.kl <= 1e9
