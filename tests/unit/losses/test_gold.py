"""GOLD's mixture against its definition in float64, value and gradient."""

import pytest
import torch
import torch.nn.functional as F
from aligned_rows import classes_of, compared, example, same_tokenizer
from plain_divergences import DIVERGENCES

from distill_tune.losses import ForwardKL, Gold, JensenShannon, ReverseKL

BETAS = [0.0, 0.1, 0.5, 1.0]


def merged(probs, rows, tokens):
    """What the first row says, times the probabilities of the tokens that follow it in the span."""
    return probs[rows[0]] * torch.stack([probs.new_ones(())] + [probs[row, tokens[row]] for row in rows[1:]]).prod()


def plain(q, p, targets, own, rows, shared, beta, weights=None):
    """``{student's first row: value}`` of probabilities, float64, for autograd."""
    values = {}
    for mine, theirs in rows:
        s, t = merged(q, mine, targets), merged(p, theirs, own)
        a, b = s[shared[0]], t[shared[1]]
        if beta in (0, 1):
            of, to = (b, a) if beta == 0 else (a, b)
            matched = (of * (of / to).log() - of + to).sum()
        else:
            m = beta * b + (1 - beta) * a
            matched = (beta * b * (b / m).log() + (1 - beta) * a * (a / m).log()).sum()
        a, b = (
            of[torch.ones_like(of, dtype=torch.bool).index_fill(0, ids, False)].sort(descending=True).values
            for of, ids in zip((s, t), shared, strict=True)
        )
        widest = max(len(a), len(b))
        unmatched = (F.pad(a, (0, widest - len(a))) - F.pad(b, (0, widest - len(b)))).abs().sum()
        share = len(shared[1]) / p.shape[1]
        w, u = weights or (share, 1 - share)
        values[mine[0]] = w * matched + u * unmatched
    return values


def assert_plain(method, of_example, temperature=1.0, **settings):
    student, teacher, targets, word, rows = of_example
    logits = student.double().requires_grad_()
    q, p = ((of.double() / temperature).softmax(-1) for of in (logits, teacher))
    shared = word.classes.shared_student, word.classes.shared_teacher
    wanted = plain(q, p, targets, word.targets, rows, shared, method.beta, **settings)
    gradient = torch.autograd.grad(sum(wanted.values()), logits)[0] * temperature
    values, found = compared(method, student, teacher, targets, word, temperature)
    for row, value in enumerate(values.tolist()):
        assert value == pytest.approx(wanted[row].item() if row in wanted else 0.0, rel=1e-5, abs=1e-6)
    assert (found - gradient).norm() < 1e-5 * gradient.norm()


@pytest.mark.parametrize("masked", [[], [3, 8]], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_value_and_gradient_are_those_of_the_definition(beta, temperature, masked):
    assert_plain(Gold(beta), example(masked=masked), temperature)


@pytest.mark.parametrize(("v_s", "v_t"), [(23, 19), (19, 23)])
def test_weights_of_ones_own(v_s, v_t):
    assert_plain(Gold(0.5, 0.9, 0.3), example(v_s=v_s, v_t=v_t), weights=(0.9, 0.3))


@pytest.mark.parametrize("shared", [0, 19])
def test_no_token_or_each_of_the_students_may_be_shared(shared):
    student, teacher, targets, word, rows = example()
    of_both = torch.randperm(19)[:shared], torch.randperm(23)[:shared]
    word = type(word)(word.logits, word.targets, word.positions, classes_of(19, 23, *of_both), word.on_cpu)
    assert_plain(Gold(0.5), (student, teacher, targets, word, rows))


@pytest.mark.parametrize("beta", BETAS)
def test_with_one_tokenizer_it_is_the_divergence_over_all_tokens(beta):
    student, teacher, targets, word, _ = same_tokenizer()
    values, gradient = compared(Gold(beta), student, teacher, targets, word)
    logits = student.double().requires_grad_()
    wanted = DIVERGENCES[f"jsd {beta:g}"][1](teacher.double().log_softmax(-1), logits.log_softmax(-1))
    torch.testing.assert_close(values, wanted.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted.sum(), logits)[0].float(), rtol=1e-5, atol=1e-6)
    plainly = {0.0: ForwardKL(), 1.0: ReverseKL()}.get(beta, JensenShannon(beta))
    divergence = compared(lambda q, p, *_: plainly(q, p), student, teacher, targets, word)
    torch.testing.assert_close(values, divergence[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_never_below_zero_and_zero_where_both_agree(beta):
    student, teacher, targets, word, _ = example(scale=6.0)
    values, _ = compared(Gold(beta, 1.0, 0.0), student, teacher, targets, word)
    assert values.min() > -1e-6
    student, _, targets, word, _ = same_tokenizer()
    values, gradient = compared(Gold(beta), student, student.clone(), targets, word)
    assert values.abs().max() < 1e-6
    assert gradient.abs().max() < 1e-6


def test_a_shifted_alignment_is_another_value():
    student, teacher, targets, word, _ = same_tokenizer()
    values, _ = compared(Gold(), student, teacher, targets, word)
    shifted, _ = compared(Gold(), student, teacher.roll(-1, 0), targets, word)
    assert ((values - shifted).abs() > 1e-3).all()


@pytest.mark.parametrize("beta", BETAS)
def test_excluded_tokens_give_finite_numbers(beta):
    student, teacher, targets, word, _ = example()
    student[:, ::3], teacher[:, ::2] = -torch.inf, -torch.inf
    values, gradient = compared(Gold(beta), student, teacher, targets, word)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


def test_no_span_is_no_loss():
    student, teacher, targets, word, _ = example([([2, 2], [4])], masked=[0, 1])
    values, gradient = compared(Gold(), student, teacher, targets, word)
    assert not values.any()
    assert not gradient.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.5}, "beta=1.5: must be from 0 to 1"),
        ({"matched_weight": 0.5}, "matched_weight and unmatched_weight: set both, or neither"),
        ({"matched_weight": -1.0, "unmatched_weight": 1.0}, "matched_weight=-1.0: must be at least 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Gold(**settings)
