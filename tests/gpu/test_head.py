"""The head on CUDA: its kernel against the plain path on the same logits, and its products into float32."""

import pytest
import torch

from distill_tune import losses
from distill_tune.losses import rows

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("softcap", "teacher_softcap"), [(None, None), (5.0, 30.0)])
def test_the_kernel_is_the_plain_path(dtype, temperature, softcap, teacher_softcap, monkeypatch):
    pytest.importorskip("triton")
    generator = torch.Generator("cuda").manual_seed(0)
    student, teacher = (torch.randn(9, v, generator=generator, device="cuda").to(dtype) for v in (10_001, 10_050))
    targets = torch.randint(10_001, (9,), generator=generator, device="cuda")
    mixture = rows.Mixture(
        0.3,
        temperature,
        10_001,
        losses.CrossEntropy(),
        losses.ForwardKL(),
        softcap=softcap,
        teachers=[(1.0, teacher_softcap)],
    )
    assert rows._has_kernel(mixture, student)

    def both(dtype):
        return rows.losses_and_gradient(mixture, student.clone(), targets, [teacher.clone()], dtype)

    found = both(dtype)
    monkeypatch.setattr(rows, "_has_kernel", lambda *_: False)
    wanted = both(torch.float32)
    for ours, theirs in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (found[2] - wanted[2]).norm() / wanted[2].norm() < (1e-5 if dtype == torch.float32 else 1e-2)


def test_logits_of_bf16_are_not_rounded_to_bf16():
    hidden, weight = (torch.randn(size, 512, device="cuda").bfloat16() for size in (33, 1001))
    projection = losses.LinearProjection(weight)
    assert projection.memory(33, 0, torch.bfloat16) is None
    wanted = hidden.double() @ weight.double().T
    assert (projection.logits(hidden, None) - wanted).norm() / wanted.norm() < 1e-5


@pytest.mark.parametrize("temperature", [1.0, 2.0, 2.5])
@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_a_record_has_the_losses_and_gradient_of_the_cpu(kind, temperature):
    generator = torch.Generator("cuda").manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator, device="cuda") for n in (300, 10_001))
    teacher = torch.randn(300, 10_001, generator=generator, device="cuda") * 3
    targets = torch.randint(10_001, (300,), generator=generator, device="cuda")
    if kind == "sampled":
        record = losses.SampledTokens.drawn(teacher, 50, temperature, generator)
    else:
        record = losses.TopTokens.of(teacher, 50, temperature)

    def on(device):
        x = hidden.to(device).requires_grad_()
        projection = losses.LinearProjection(weight.to(device))
        settings = {"kd_ratio": 0.5, "temperature": temperature}
        here = torch.device(device)
        sums = losses.distillation_loss(x, projection, targets.to(device), record.to(here), **settings)
        return sums, torch.autograd.grad(sums.loss, x)[0].cpu()

    (found, gradient), (wanted, wanted_gradient) = on("cuda"), on("cpu")
    for ours, theirs in zip(found.values(), wanted.values(), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-3)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-3
