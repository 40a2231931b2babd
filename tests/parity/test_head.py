"""The KD head against a plain float64 autograd version, and against torchtune's own losses."""

import pytest
import torch
import torch.nn.functional as F

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.losses import (
    AutogradProjection,
    DenseLogits,
    HiddenStates,
    LinearProjection,
    distillation_loss,
    head,
    rows,
)

from torchtune.modules.loss import ForwardKLLoss
from torchtune.modules.peft import DoRALinear, LoRALinear


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven chunks and a rest, so that chunking is part of what is tested."""
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 2 * 4 * 53 * 7})
    monkeypatch.setitem(rows._PART_BYTES, "cpu", 4 * 53 * 3)


def example(n=53, d=16, v=53, d_t=24, v_t=53, scale=1.0, dtype=torch.float32):
    torch.manual_seed(0)
    hidden, weight = torch.randn(n, d, dtype=dtype) * scale, torch.randn(v, d, dtype=dtype)
    teacher_hidden, teacher_weight = torch.randn(n, d_t, dtype=dtype) * scale, torch.randn(v_t, d_t, dtype=dtype)
    targets = torch.randint(0, min(v, v_t), (n,))
    return hidden.requires_grad_(), weight.requires_grad_(), teacher_hidden, teacher_weight, targets


def plain(hidden, weight, teacher_hidden, teacher_weight, targets, kd_ratio, temperature, common):
    """The formula as it is written, in float64."""
    logits = hidden.double() @ weight.double().T
    teacher_logits = teacher_hidden.double() @ teacher_weight.double().T
    ce = F.cross_entropy(logits, targets, reduction="sum")
    kd = F.kl_div(
        (logits[:, :common] / temperature).log_softmax(-1),
        (teacher_logits[:, :common] / temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    return (1 - kd_ratio) * ce + kd_ratio * temperature**2 * kd


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kd_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("v", "v_t"), [(53, 53), (53, 61), (61, 53)])
def test_value_and_gradients_are_those_of_float64(kd_ratio, temperature, v, v_t):
    hidden, weight, teacher_hidden, teacher_weight, targets = example(v=v, v_t=v_t)
    sums = distillation_loss(
        hidden,
        LinearProjection(weight),
        targets,
        HiddenStates(teacher_hidden, LinearProjection(teacher_weight)),
        kd_ratio=kd_ratio,
        temperature=temperature,
        common_vocab_size=min(v, v_t),
    )
    found = torch.autograd.grad(sums.loss, [hidden, weight])
    wanted_loss = plain(hidden, weight, teacher_hidden, teacher_weight, targets, kd_ratio, temperature, min(v, v_t))
    wanted = torch.autograd.grad(wanted_loss, [hidden, weight])
    assert sums.loss.item() == pytest.approx(wanted_loss.item(), rel=1e-5)
    for gradient, exact in zip(found, wanted, strict=True):
        assert (gradient - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("kd_ratio", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("peak", [5, 20, 50])
def test_bf16_gradient_is_within_a_hundredth_of_float64(kd_ratio, peak):
    """Also where logits are as large as a trained model's, and teacher and student near each other."""
    generator = torch.Generator().manual_seed(0)
    hidden, noise = (torch.randn(64, 32, generator=generator) for _ in range(2))
    weight, other = (torch.randn(300, 32, generator=generator) * peak / 20 for _ in range(2))
    teacher_hidden = torch.cat([hidden, noise], 1).bfloat16()
    teacher_weight = torch.cat([weight, 0.2 * other], 1).bfloat16()
    hidden, weight = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    targets = torch.randint(0, 300, (64,), generator=generator)
    signal = HiddenStates(teacher_hidden, LinearProjection(teacher_weight))
    sums = distillation_loss(hidden, LinearProjection(weight), targets, signal, kd_ratio=kd_ratio)
    found = torch.autograd.grad(sums.loss, [hidden, weight])
    exact_loss = plain(hidden, weight, teacher_hidden, teacher_weight, targets, kd_ratio, 1.0, 300)
    assert sums.loss.item() == pytest.approx(exact_loss.item(), rel=1e-5)
    for gradient, exact in zip(found, torch.autograd.grad(exact_loss, [hidden, weight]), strict=True):
        assert (gradient.double() - exact.double()).norm() / exact.double().norm() < 1e-2


def test_forward_kl_and_gradient_agree_with_torchtunes_loss_up_to_the_teachers_entropy():
    hidden, weight, teacher_hidden, teacher_weight, targets = example()
    logits, teacher_logits = hidden @ weight.T, teacher_hidden @ teacher_weight.T
    theirs = ForwardKLLoss()(logits, teacher_logits, targets)  # a mean cross-entropy against the teacher
    entropy = -(teacher_logits.softmax(-1) * teacher_logits.log_softmax(-1)).sum(-1).mean()
    ours = distillation_loss(hidden, LinearProjection(weight), targets, DenseLogits(teacher_logits), kd_ratio=1.0)
    assert ours.kd.item() / len(hidden) == pytest.approx((theirs - entropy).item(), rel=1e-4)
    our_gradient = torch.autograd.grad(ours.loss / len(hidden), hidden)[0]
    torch.testing.assert_close(our_gradient, torch.autograd.grad(theirs, hidden)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [LoRALinear, DoRALinear])
def test_a_head_with_adapters_gets_their_gradients(layer):
    hidden, _, teacher_hidden, teacher_weight, targets = example()
    module = layer(16, 53, rank=4, alpha=8.0)
    torch.nn.init.normal_(module.lora_b.weight)
    if layer is DoRALinear:
        module.initialize_dora_magnitude()
    module.weight.requires_grad_(False)
    trainable = [p for p in module.parameters() if p.requires_grad]
    teacher_logits = teacher_hidden @ teacher_weight.T
    sums = distillation_loss(
        hidden, AutogradProjection(module, 53, trainable), targets, DenseLogits(teacher_logits), kd_ratio=0.5
    )
    found = torch.autograd.grad(sums.loss, [hidden, *trainable])
    logits = module(hidden)
    whole = 0.5 * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * F.kl_div(
        logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="sum", log_target=True
    )
    for gradient, wanted in zip(found, torch.autograd.grad(whole, [hidden, *trainable]), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("softcap", "teacher_softcap"), [(None, None), (4.0, 6.0), (4.0, None)])
def test_biases_and_caps_are_part_of_the_head(softcap, teacher_softcap, dtype):
    hidden, weight, teacher_hidden, teacher_weight, targets = (
        x if x.dtype == torch.int64 else x.detach().to(dtype).requires_grad_(x.requires_grad) for x in example()
    )
    bias = torch.randn(53, dtype=dtype, requires_grad=True)
    signal = HiddenStates(teacher_hidden, LinearProjection(teacher_weight, softcap=teacher_softcap))
    sums = distillation_loss(
        hidden, LinearProjection(weight, bias, softcap), targets, signal, kd_ratio=0.4, temperature=1.5
    )
    found = torch.autograd.grad(sums.loss, [hidden, weight, bias])

    def capped(logits, cap):
        return logits if cap is None else cap * (logits / cap).tanh()

    logits = capped(hidden.double() @ weight.double().T + bias.double(), softcap)
    teacher_logits = capped(teacher_hidden.double() @ teacher_weight.double().T, teacher_softcap)
    ce = F.cross_entropy(logits, targets, reduction="sum")
    kd = F.kl_div((logits / 1.5).log_softmax(-1), (teacher_logits / 1.5).softmax(-1), reduction="sum")
    exact = torch.autograd.grad(0.6 * ce + 0.4 * 2.25 * kd, [hidden, weight, bias])
    for gradient, wanted in zip(found, exact, strict=True):
        assert (gradient.double() - wanted.double()).norm() / wanted.double().norm() < (
            1e-5 if dtype == torch.float32 else 1e-2
        )


def test_agreement_costs_nothing():
    hidden, weight, _, _, targets = example()
    signal = HiddenStates(hidden.detach(), LinearProjection(weight.detach()))
    sums = distillation_loss(hidden, LinearProjection(weight), targets, signal, kd_ratio=1.0)
    assert abs(sums.kd.item()) < 1e-4
    assert torch.autograd.grad(sums.loss, hidden)[0].abs().max() < 1e-5


def test_extreme_logits_and_excluded_tokens_give_no_nan():
    hidden, weight, teacher_hidden, teacher_weight, targets = example(scale=1e4)
    teacher_logits = teacher_hidden @ teacher_weight.T
    teacher_logits[:, 5:] = -torch.inf
    sums = distillation_loss(hidden, LinearProjection(weight), targets, DenseLogits(teacher_logits), kd_ratio=0.5)
    gradient = torch.autograd.grad(sums.loss, hidden)[0]
    assert torch.isfinite(sums.loss)
    assert torch.isfinite(gradient).all()


def test_without_supervised_tokens_the_loss_is_zero_and_differentiable():
    hidden = torch.zeros(0, 16, requires_grad=True)
    weight = torch.randn(53, 16, requires_grad=True)
    targets = torch.zeros(0, dtype=torch.long)
    sums = distillation_loss(hidden, LinearProjection(weight), targets)
    sums.loss.backward()
    assert sums.loss.item() == 0
    assert weight.grad.abs().max() == 0


def test_a_divergence_without_a_teacher_is_refused():
    hidden, weight, _, _, targets = example()
    with pytest.raises(ValueError, match=r"kd_ratio is 0\.5, but there is no teacher signal"):
        distillation_loss(hidden, LinearProjection(weight), targets, kd_ratio=0.5)
