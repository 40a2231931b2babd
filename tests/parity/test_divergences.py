"""Every divergence, through the head's rows: against float64 autograd, torchtune, TRL and Liger."""

import math

import pytest
import torch
import torch.nn.functional as F
from plain_divergences import DIVERGENCES, kl

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import losses
from distill_tune.losses import rows
from distill_tune.losses.rows import Mixture, losses_and_gradient

from torchtune.modules.loss import ReverseKLLoss, SymmetricKLLoss

V = 37


def example(kind, dtype=torch.float32, n=41):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n, V, generator=generator) for _ in range(2))
    if kind == "peaked":
        student, teacher = student * 8, teacher * 8
    elif kind == "near-equal":
        student, teacher = teacher * 3 + 0.01 * student, teacher * 3
    elif kind == "masked":
        student[:, 30:], teacher[:, 30:] = -torch.inf, -torch.inf
    elif kind == "extreme":
        student, teacher = student * 1e4, teacher * 1e4
    targets = torch.randint(0, 30, (n,), generator=generator)
    return student.to(dtype), teacher.to(dtype), targets


def ours(divergence, student, teacher, targets, temperature=1.0, **settings):
    mixture = Mixture(1.0, temperature, None, losses.CrossEntropy(), divergence, **settings)
    _, kd, gradient = losses_and_gradient(mixture, student.clone(), targets, [teacher.clone()], torch.float32)
    return kd, gradient


def exact(formula, student, teacher, temperature=1.0):
    """Value and gradient of T^2 times the divergence in float64, by autograd."""
    logits = student.double().requires_grad_()
    # -inf would make autograd's 0 * inf; a logit of -1e6 has no probability either.
    q = (logits.clamp(min=-1e6) / temperature).log_softmax(-1).masked_fill(student.isinf(), -torch.inf)
    p = (teacher.double() / temperature).log_softmax(-1)
    value = torch.where(torch.isfinite(v := formula(p, q)), v, 0.0).sum()
    return value, torch.autograd.grad(temperature**2 * value, logits)[0]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["random", "peaked", "near-equal"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradient_are_those_of_float64(name, kind, temperature, monkeypatch):
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * V * 7)  # several parts, and a rest
    divergence, formula = DIVERGENCES[name]
    student, teacher, targets = example(kind)
    value, gradient = ours(divergence, student, teacher, targets, temperature)
    wanted, wanted_gradient = exact(formula, student, teacher, temperature)
    assert value.item() == pytest.approx(wanted.item(), rel=2e-5, abs=2e-5)
    # Near-equal distributions leave float32 few digits of their difference, and the sign of some of them open.
    tolerance = 1e-5 if kind != "near-equal" else 0.1 if name == "total variation" else 2e-3
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < tolerance


@pytest.mark.parametrize("name", DIVERGENCES)
def test_bfloat16_logits_are_compared_in_float32(name):
    divergence, formula = DIVERGENCES[name]
    student, teacher, targets = example("peaked", torch.bfloat16)
    value, gradient = ours(divergence, student, teacher, targets)
    wanted, wanted_gradient = exact(formula, student, teacher)
    assert value.item() == pytest.approx(wanted.item(), rel=2e-5)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-5


@pytest.mark.parametrize("kind", ["extreme", "masked"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_extreme_and_excluded_logits_give_no_nan(name, kind):
    divergence, formula = DIVERGENCES[name]
    for temperature in (1.0, 3.0):
        value, gradient = ours(divergence, *example(kind), temperature)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    if kind == "masked":
        student, teacher, targets = example(kind)
        value, gradient = ours(divergence, student, teacher, targets)
        wanted, _ = exact(formula, student, teacher)
        assert value.item() == pytest.approx(wanted.item(), rel=2e-5)
        assert gradient[:, 30:].abs().max() == 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_that_one_alone_excludes_give_no_nan(name):
    for side in (0, 1):
        logits = list(example("peaked"))
        logits[side][:, 30:] = -torch.inf
        value, gradient = ours(DIVERGENCES[name][0], *logits)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_tokens_that_the_teacher_excludes_are_left_out_as_in_float64(name, temperature):
    divergence, formula = DIVERGENCES[name]
    student, teacher, targets = example("random")
    teacher[:, 30:] = -torch.inf
    value, gradient = ours(divergence, student, teacher, targets, temperature)
    wanted, wanted_gradient = exact(formula, student, teacher, temperature)
    assert torch.isfinite(wanted_gradient).all()
    assert value.item() == pytest.approx(wanted.item(), rel=2e-5)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-5


@pytest.mark.parametrize("kind", ["random", "peaked", "masked", "extreme"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_agreement_is_nothing(name, kind):
    student, _, targets = example(kind)
    for temperature in (1.0, 2.5):
        value, gradient = ours(DIVERGENCES[name][0], student, student, targets, temperature)
        assert abs(value.item()) / len(student) < 1e-6
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["random", "peaked"])
@pytest.mark.parametrize(("name", "theirs"), [("reverse", ReverseKLLoss()), ("symmetric", SymmetricKLLoss(0.3))])
def test_torchtunes_losses(name, theirs, kind):
    """Its symmetric loss has the cross-entropy against the teacher for forward KL: the teacher's entropy more."""
    student, teacher, targets = example(kind)
    value, gradient = ours(DIVERGENCES[name][0], student, teacher, targets)
    logits = student.clone().requires_grad_()
    wanted = theirs(logits, teacher, targets) * len(student)
    entropy = 0.3 * torch.special.entr(teacher.softmax(-1)).sum() if name == "symmetric" else 0.0
    assert value.item() == pytest.approx((wanted - entropy).item(), rel=1e-4)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, logits)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trls_gkd(beta, temperature):
    """Which leaves T^2 out."""
    from trl.experimental.gkd import GKDTrainer

    student, teacher, targets = example("random")
    value, gradient = ours(
        losses.JensenShannon(beta), student, teacher, targets, temperature, temperature_squared=False
    )
    logits = student.clone().requires_grad_()
    theirs = GKDTrainer.generalized_jsd_loss(logits, teacher, beta=beta, temperature=temperature, reduction="sum")
    assert value.item() == pytest.approx(theirs.item(), rel=1e-4)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs, logits)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_ligers_jsd(beta):
    from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction

    student, teacher, targets = example("random")
    value, gradient = ours(losses.JensenShannon(beta), student, teacher, targets)
    logits = student.clone().requires_grad_()
    theirs = LigerFusedLinearJSDFunction.distillation_loss_fn(logits, teacher, beta=beta)
    assert value.item() == pytest.approx(theirs.sum().item(), rel=1e-4)
    torch.testing.assert_close(gradient, torch.autograd.grad(theirs.sum(), logits)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "share"), [("forward", 1), ("reverse", 1), ("symmetric", 1), ("jsd 0.1", 0.09), ("skewed forward", 0.81)]
)
def test_high_temperatures_compare_centred_logits(name, share):
    """T^2 D tends to its share of half the variance of the logits' difference."""
    student, teacher, _ = example("random")
    difference = student - teacher
    half_variance = 0.5 * (difference - difference.mean(-1, keepdim=True)).square().mean(-1).sum()
    value, _ = exact(DIVERGENCES[name][1], student, teacher, temperature=1e4)
    assert value.item() * 1e8 == pytest.approx(share * half_variance.item(), rel=1e-3)


@pytest.mark.parametrize("weight", [losses.TeacherCertainty(), losses.TargetProbability()])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_token_weights_multiply_each_tokens_divergence(weight, temperature):
    student, teacher, targets = example("random")
    p = teacher.double().log_softmax(-1)
    if isinstance(weight, losses.TargetProbability):
        wanted_weight = p.gather(1, targets[:, None]).exp()[:, 0]
    else:
        wanted_weight = 1 + (p.exp() * p).sum(-1) / math.log(V)
    value, gradient = ours(losses.ForwardKL(), student, teacher, targets, temperature, token_weight=weight)
    wanted, wanted_gradient = exact(lambda a, b: wanted_weight * kl(a, b), student, teacher, temperature)
    assert value.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(gradient, wanted_gradient.float(), rtol=1e-4, atol=1e-6)


def test_wrong_arguments_are_refused():
    for make in (
        lambda: losses.SymmetricKL(1.5),
        lambda: losses.JensenShannon(-0.1),
        lambda: losses.SkewedForwardKL(1.0),
        lambda: losses.SkewedReverseKL(2),
        lambda: losses.AdaptiveKL(3),
        lambda: losses.TopK(0),
    ):
        with pytest.raises(ValueError, match="must be"):
            make()


def test_a_uniform_teacher_weighs_nothing_and_a_sure_one_all():
    flat = torch.full((1, V), -math.log(V))
    sure = F.one_hot(torch.tensor([3]), V).log()
    flat, sure = (losses.Distribution(log_probs, log_probs.exp()) for log_probs in (flat, sure))
    certainty = losses.TeacherCertainty()
    assert certainty(flat, torch.tensor([3])).item() == pytest.approx(0, abs=1e-6)
    assert certainty(sure, torch.tensor([3])).item() == 1
    assert losses.TargetProbability()(sure, torch.tensor([V + 5])).item() == 0  # a token that the teacher has not


def test_a_token_that_would_count_more_than_its_bound_counts_that_and_pulls_no_more():
    student, teacher, targets = example("random")
    values = kl(teacher.log_softmax(-1), student.log_softmax(-1))
    most = values.median().item()
    value, gradient = ours(losses.ClippedPerToken(most), student, teacher, targets)
    assert value.item() == pytest.approx(values.clamp(max=most).sum().item(), rel=1e-5)
    assert (gradient.abs().amax(-1) == 0).tolist() == (values > most).tolist()
