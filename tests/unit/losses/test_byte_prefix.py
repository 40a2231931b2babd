"""Byte-prefix mass against its definition on dictionaries of byte strings, in float64, value and gradient."""

import dataclasses

import pytest
import torch
from plain_divergences import DIVERGENCES
from toy_tokenizers import Toy, masses, written

from distill_tune.losses import LinearProjection, distillation_loss, head, rows

D = 8


def parts(toy, seed=0, scale=1.5, padding=2):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(toy.student_row), D, generator=generator) * scale
    weight = torch.randn(len(toy.student) + padding, D, generator=generator)
    teacher = torch.randn(len(toy.teacher_row), len(toy.teacher) + padding, generator=generator) * 2 * scale
    return hidden.requires_grad_(), weight.requires_grad_(), teacher


def by_definition(toy, logits, teacher, formula, temperature=1.0):
    """Of each row, float64, for autograd."""
    log_q, log_p = ((of.double() / temperature).log_softmax(-1) for of in (logits, teacher))
    pairs = masses(toy, log_q, log_p)
    return torch.stack(
        [logits.new_zeros(()) if pair is None else formula(pair[0][None], pair[1][None])[0] for pair in pairs]
    )


def compare(toy, name="forward", temperature=1.0, kd_ratio=1.0, seed=0, tolerance=1e-5, caps=(None, None)):
    divergence, formula = DIVERGENCES[name]
    hidden, weight, teacher = parts(toy, seed)
    targets = torch.tensor(toy.student_row)
    sums = distillation_loss(
        hidden,
        LinearProjection(weight, softcap=caps[0]),
        targets,
        toy.signal(teacher, caps[1]),
        kd_ratio=kd_ratio,
        temperature=temperature,
        divergence=divergence,
    )
    found = torch.autograd.grad(sums.loss, [hidden, weight])
    capped = [
        of if cap is None else cap * (of / cap).tanh()
        for of, cap in zip((hidden.double() @ weight.double().T, teacher.double()), caps, strict=True)
    ]
    kd = by_definition(toy, *capped, formula, temperature).sum()
    ce = torch.nn.functional.cross_entropy(capped[0], targets, reduction="sum")
    wanted = torch.autograd.grad((1 - kd_ratio) * ce + kd_ratio * temperature**2 * kd, [hidden, weight])
    assert sums.kd.item() == pytest.approx(kd.item(), rel=tolerance)
    for gradient, exact in zip(found, wanted, strict=True):
        assert (gradient - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize("seed", range(40))
def test_value_and_gradient_are_those_of_the_definition(seed):
    compare(written(seed), seed=seed)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("seed", range(3))
def test_of_any_divergence(name, seed):
    compare(written(seed, length=24), name, seed=seed)
