"""Forward KL at some positions alone, as benchmarks/cached.py compares it."""

import importlib
from pathlib import Path

import pytest
import torch

from distill_tune.losses import ForwardKL
from distill_tune.losses.divergences import distribution

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NUM_POSITIONS = 128 + 40


@pytest.fixture
def positions(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("positions")


@pytest.fixture
def logits():
    """Of a student, which gets more certain from each position to the next, and a teacher."""
    scale = torch.linspace(0.1, 3, NUM_POSITIONS)[:, None]
    student, teacher = torch.randn(2, NUM_POSITIONS, 30, generator=torch.Generator().manual_seed(0))
    return student * scale, teacher


def both(logits):
    return [distribution(of.clone(), torch.empty_like(of)) for of in logits]


@pytest.mark.parametrize("name", ["UncertainPositions", "RandomPositions"])
def test_a_fifth_of_each_group_of_positions_counts_five_times_and_the_others_nothing(positions, logits, name):
    values, gradient = getattr(positions, name)(0.2)(*both(logits))
    whole_values, whole_gradient = ForwardKL()(*both(logits))
    chosen = values != 0
    assert [int(part.sum()) for part in chosen.split(128)] == [26, 8]
    weight = torch.where(chosen, torch.tensor([128 / 26] * 128 + [40 / 8] * 40), 0)
    torch.testing.assert_close(values, whole_values * weight)
    torch.testing.assert_close(gradient, whole_gradient * weight[:, None])


def test_the_least_certain_are_those_of_largest_entropy(positions, logits):
    values, _ = positions.UncertainPositions(0.2)(*both(logits))
    entropy = torch.distributions.Categorical(logits=logits[0]).entropy()
    for of_group, chosen in zip(entropy.split(128), (values != 0).split(128), strict=True):
        assert of_group[chosen].min() >= of_group[~chosen].max()


def test_random_ones_are_drawn_anew(positions, logits):
    divergence = positions.RandomPositions(0.2)
    first, second = (divergence(*both(logits))[0] != 0 for _ in range(2))
    assert not first.equal(second)
