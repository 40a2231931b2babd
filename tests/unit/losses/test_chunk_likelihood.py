"""Chunk likelihood against its definition in float64, value and gradient."""

import math

import pytest
import torch
from aligned_rows import compared, example, same_tokenizer
from plain_divergences import DIVERGENCES, kl

from distill_tune.losses import ChunkLikelihood, Distribution


def plain(student, teacher, targets, own, rows, tau=100.0, divergence=kl, temperature=1.0):
    """``{student's first row: value}``, float64, for autograd."""

    def two_events(logits, of_rows, tokens):
        log_probs = (logits.double() / temperature).log_softmax(-1)
        log_prob = sum(log_probs[row, tokens[row]] for row in of_rows) / tau
        return torch.stack([log_prob, (-log_prob.expm1()).log()])[None]

    return {
        mine[0]: tau * divergence(two_events(teacher, theirs, own), two_events(student, mine, targets))[0]
        for mine, theirs in rows
    }


def assert_plain(method, of_example, temperature=1.0, **settings):
    student, teacher, targets, word, rows = of_example
    logits = student.double().requires_grad_()
    wanted = plain(logits, teacher, targets, word.targets, rows, temperature=temperature, **settings)
    gradient = torch.autograd.grad(sum(wanted.values()), logits)[0] * temperature
    values, found = compared(method, student, teacher, targets, word, temperature)
    for row, value in enumerate(values.tolist()):
        assert value == pytest.approx(wanted[row].item() if row in wanted else 0.0, rel=1e-5, abs=1e-6)
    assert (found - gradient).norm() < 1e-5 * gradient.norm()
    return values


@pytest.mark.parametrize("masked", [[], [2], [3, 8]], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("tau", [1.0, 7.0, 100.0])
def test_value_and_gradient_are_those_of_the_definition(tau, temperature, masked):
    assert_plain(ChunkLikelihood(tau), example(masked=masked), temperature, tau=tau)


@pytest.mark.parametrize("name", ["reverse", "jsd 0.5", "skewed forward", "total variation"])
def test_any_divergence_of_two_events(name):
    divergence, formula = DIVERGENCES[name]
    assert_plain(ChunkLikelihood(10.0, divergence), example(), tau=10.0, divergence=formula)


def test_with_one_tokenizer_it_is_the_binary_divergence_of_each_token():
    student, teacher, targets, word, _ = same_tokenizer()
    p, q = (logits.double().softmax(-1).gather(1, targets[:, None])[:, 0] ** 0.01 for logits in (teacher, student))
    wanted = 100 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    values, _ = compared(ChunkLikelihood(), student, teacher, targets, word)
    torch.testing.assert_close(values, wanted.float(), rtol=1e-6, atol=1e-6)


def test_a_large_temperature_compares_surprise():
    """b - a + a log(a / b), to which the docstring says that it tends."""
    student, teacher, targets, word, rows = example()
    values, _ = compared(ChunkLikelihood(1e6), student, teacher, targets, word)
    of = [logits.double().log_softmax(-1) for logits in (student, teacher)]
    for mine, theirs in rows:
        b = -sum(of[0][row, targets[row]] for row in mine).item()
        a = -sum(of[1][row, word.targets[row]] for row in theirs).item()
        assert values[mine[0]].item() == pytest.approx(b - a + a * math.log(a / b), rel=1e-3, abs=1e-5)


def test_nothing_where_both_agree():
    student, _, targets, word, _ = same_tokenizer()
    values, gradient = compared(ChunkLikelihood(), student, student, targets, word)
    assert values.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-5


def test_what_a_teacher_without_logits_knows_is_enough():
    student, teacher, targets, word, _ = example()
    of = Distribution(student.log_softmax(-1), student.softmax(-1))
    of_tokens = teacher.log_softmax(-1).gather(1, word.targets[:, None])[:, 0]
    values, gradient = ChunkLikelihood().of_log_probs(of, of_tokens, targets, word.on_cpu)
    wanted, wanted_gradient = compared(ChunkLikelihood(), student, teacher, targets, word)
    torch.testing.assert_close(values, wanted, rtol=0, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=0, atol=0)


def test_a_student_that_is_sure_has_the_right_gradient():
    """1 - q(y) has no digits left in float32 there, and the slope is as large as q(y) is near to 1."""
    student, teacher, targets, word, rows = same_tokenizer(scale=1.0)
    student.scatter_(1, targets[:, None], torch.linspace(8, 20, len(targets))[:, None])
    assert_plain(ChunkLikelihood(), (student, teacher, targets, word, rows))


def test_certainty_and_impossibility_give_finite_numbers():
    student, teacher, targets, word, _ = same_tokenizer()
    for sure, excluded in ((student, teacher), (teacher, student)):
        sure.scatter_(1, targets[:, None], 1e4)
        excluded.scatter_(1, targets[:, None], -torch.inf)
        values, gradient = compared(ChunkLikelihood(), student, teacher, targets, word)
        assert values.isfinite().all()
        assert gradient.isfinite().all()


def test_a_shifted_alignment_is_another_value():
    student, teacher, targets, word, rows = same_tokenizer()
    shifted = [(mine, [theirs[0] + 1]) for mine, theirs in rows[:-1]]
    wanted = plain(student, teacher, targets, word.targets, shifted)
    values, _ = compared(ChunkLikelihood(), student, teacher, targets, word)
    assert all(abs(values[row].item() - value.item()) > 1e-3 for row, value in wanted.items())


@pytest.mark.parametrize("tau", [0.5, 0.0, -1.0])
def test_a_temperature_below_one_is_refused(tau):
    with pytest.raises(ValueError, match=f"chunk_temperature={tau}: must be at least 1"):
        ChunkLikelihood(tau)


def test_no_span_is_no_loss():
    student, teacher, targets, word, _ = example([([2, 2], [4])], masked=[0])
    values, gradient = compared(ChunkLikelihood(), student, teacher, targets, word)
    assert not values.any()
    assert not gradient.any()
