"""The loss head: its kernel, its products into float32 and all of it, against float64 autograd on the CPU."""

import unittest.mock
from typing import Any

import torch
import torch.nn.functional as F

from distill_tune import losses
from distill_tune.losses import head, rows
from first_hour.numbers import off
from first_hour.outcome import Deviation, NotMeasured, Settings

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BOUNDS = {"bf16": 1e-2, "fp32": 1e-5}
# Vocabularies that are no multiple of a block, and the second larger by its padding.
SIZES = {True: (5, 101, 110), False: (64, 128_256, 128_300)}
CHUNK_ROWS = 7  # of the whole head; several chunks, and a rest


def kernel(settings: Settings, dtype: str, same_vocabulary: bool = True, **changed: Any) -> Deviation:
    """Losses and gradient of a chunk of logits; logits of ``dtype``, as the gradient is."""
    n, v, v_t = SIZES[settings.small]
    v_t = v if same_vocabulary else v_t
    of = {"kd_ratio": 0.3, "temperature": 1.0, "softcap": None, "teacher_softcap": None} | changed
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(n, size, generator=generator).to(DTYPES[dtype]) for size in (v, v_t))
    targets = torch.randint(v, (n,), generator=generator)
    mixture = rows.Mixture(
        of["kd_ratio"],
        of["temperature"],
        None if same_vocabulary else v,
        losses.CrossEntropy(),
        losses.ForwardKL(),
        softcap=of["softcap"],
        teachers=[(1.0, of["teacher_softcap"])],
    )
    exact = student.double().requires_grad_()
    ce, kd = plain(exact, targets, teacher[:, :v].double(), of["temperature"], of["softcap"], of["teacher_softcap"])
    (gradient,) = torch.autograd.grad((1 - of["kd_ratio"]) * ce + mixture.kd_weight * kd, exact)

    here = student.to(settings.device)
    if not rows._has_kernel(mixture, here):
        raise NotMeasured("Triton is not installed, so the plain path is taken")
    sums = rows.losses_and_gradient(
        mixture, here, targets.to(settings.device), [teacher.to(settings.device)], DTYPES[dtype]
    )
    of_losses = off(sums[:2] if of["kd_ratio"] < 1 else sums[1:2], [ce, kd] if of["kd_ratio"] < 1 else [kd])
    of_gradient = off(sums[2:], [gradient])
    # The sums are float32 whatever the logits are; held to as much as the gradient, they would hide an error of it.
    return Deviation(max(of_gradient, of_losses), BOUNDS[dtype], f"losses {of_losses:.1e}, gradient {of_gradient:.1e}")


def product(settings: Settings) -> Deviation:
    """bf16 times bf16 into float32, as the head's logits are made: not rounded to bf16 in between."""
    n, v, _ = SIZES[settings.small]
    d = 64 if settings.small else 2048
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, d, generator=generator).bfloat16() for size in (n, v))
    projection = losses.LinearProjection(weight.to(settings.device))
    found = projection.logits(hidden.to(settings.device), None)
    return Deviation(off([found], [hidden.double() @ weight.double().T]), 1e-5)


def whole(settings: Settings, dtype: str) -> Deviation:
    """distillation_loss in several chunks, its gradients for hidden states and output layer."""
    n, v, d, d_t = (40, 101, 16, 24) if settings.small else (500, 32_001, 256, 512)
    generator = torch.Generator().manual_seed(0)

    def random(*size: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * scale).to(DTYPES[dtype])

    hidden, weight = random(n, d), random(v, d, scale=0.1)
    teacher_hidden, teacher_weight = random(n, d_t), random(v, d_t, scale=0.1)
    targets = torch.randint(v, (n,), generator=generator)

    exact = [x.double().requires_grad_() for x in (hidden, weight)]
    ce, kd = plain(exact[0] @ exact[1].T, targets, teacher_hidden.double() @ teacher_weight.double().T)
    wanted = torch.autograd.grad(0.5 * ce + 0.5 * kd, exact)

    own = [x.to(settings.device).requires_grad_() for x in (hidden, weight)]
    of_teacher = [x.to(settings.device) for x in (teacher_hidden, teacher_weight)]
    signal = losses.HiddenStates(of_teacher[0], losses.LinearProjection(of_teacher[1]))
    per_row = losses.chunk_bytes_per_row(v, v, DTYPES[dtype])
    with unittest.mock.patch.dict(head.CHUNK_BYTES, {settings.device: CHUNK_ROWS * per_row}):
        sums = losses.distillation_loss(
            own[0], losses.LinearProjection(own[1]), targets.to(settings.device), signal, kd_ratio=0.5
        )
    found = torch.autograd.grad(sums.loss, own)
    of_losses, of_gradients = off([sums.ce, sums.kd], [ce, kd]), off(found, wanted)
    told = f"losses {of_losses:.1e}, gradients {of_gradients:.1e}"
    return Deviation(max(of_losses, of_gradients), BOUNDS[dtype], told)


def plain(logits, targets, teacher_logits, temperature=1.0, softcap=None, teacher_softcap=None):
    """Sums of cross-entropy and KL as they are written; ``teacher_logits`` of as many tokens as ``logits``."""
    logits = softcap * (logits / softcap).tanh() if softcap else logits
    if teacher_softcap:
        teacher_logits = teacher_softcap * (teacher_logits / teacher_softcap).tanh()
    ce = F.cross_entropy(logits, targets, reduction="sum")
    of_both = ((x / temperature).log_softmax(-1) for x in (logits, teacher_logits))
    return ce, F.kl_div(*of_both, reduction="sum", log_target=True)
