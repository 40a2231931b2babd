"""The loss between hidden states against autograd, and which layers it pairs."""

import pytest
import torch
import torch.nn.functional as F

from distill_tune.losses import HiddenLoss, HiddenStates


def example():
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(9, 4, generator=generator).requires_grad_() for _ in range(2)]
    teacher = [torch.randn(12, 6, generator=generator) for _ in range(2)]
    projectors = [torch.nn.Linear(4, 6, bias=False) for _ in range(2)]
    supervised = torch.tensor([False] * 4 + [True] * 5)
    of_teacher = torch.tensor([False] * 7 + [True] * 5)
    return student, HiddenStates(torch.empty(0), None, teacher, of_teacher), supervised, projectors


def test_mse_is_the_mean_over_width_and_pairs_and_the_sum_over_positions():
    student, signal, supervised, projectors = example()
    found = HiddenLoss()(student, signal, supervised, projectors)
    each = [
        F.mse_loss(project(mine[4:]), its[7:], reduction="none").mean(-1).sum()
        for mine, its, project in zip(student, signal.layers, projectors, strict=True)
    ]
    assert found.item() == pytest.approx(sum(each).item() / 2)
    parameters = [*student, *(p.weight for p in projectors)]
    for one, other in zip(
        torch.autograd.grad(found, parameters), torch.autograd.grad(sum(each) / 2, parameters), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_cosine_looks_at_direction_alone():
    _, signal, supervised, _ = example()
    same = [its[:9, :4].clone() * 3 for its in signal.layers]
    of_same = HiddenStates(torch.empty(0), None, [its[:9, :4] for its in signal.layers], supervised)
    identity = [torch.nn.Identity()] * 2
    assert HiddenLoss(measure="cosine")(same, of_same, supervised, identity).item() == pytest.approx(0, abs=1e-5)
    opposite = [-its for its in same]
    assert HiddenLoss(measure="cosine")(opposite, of_same, supervised, identity).item() == pytest.approx(2 * 5)


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ("uniform", [(1, 3), (2, 6)]),
        ("last", [(2, 6)]),
        ([[0, 0], [1, 6]], [(0, 0), (1, 6)]),
        ([], []),
    ],
)
def test_layers_are_paired(layers, pairs):
    assert HiddenLoss(layers).pairs(2, 6) == pairs


def test_what_cannot_be_is_refused():
    for arguments in ({"layers": "first"}, {"layers": [[1]]}, {"measure": "kl"}, {"positions": "none"}):
        with pytest.raises(ValueError, match="must be"):
            HiddenLoss(**arguments)
    with pytest.raises(ValueError, match=r"\[3, 1\]: the student has 2 layers, the teacher 6"):
        HiddenLoss([[3, 1]]).pairs(2, 6)


@pytest.mark.parametrize("layers", [[0], [[1]], [[1, 2, 3]]])
def test_layers_that_are_no_pairs_are_told(layers):
    with pytest.raises(ValueError, match=r"layers=.*: must be pairs \[\[student layer, teacher layer\], \.\.\.\]"):
        HiddenLoss(layers)
