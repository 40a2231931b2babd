"""The KD head: the loss owns the output layer, so that no full set of logits is ever made."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import Divergence, ForwardKL
from distill_tune.losses.signals import TeacherSignal

# What the fp32 logits and probabilities of one chunk may take, student and teacher together.
CHUNK_BYTES = 128 * 2**20
_BUFFERS = 6  # [c, v] tensors in fp32 that are alive at once in a chunk


@dataclasses.dataclass(frozen=True)
class LossSums:
    """Sums over the supervised tokens, never means: the caller divides by the token count of its whole step.

    Attributes:
        loss: (1 - kd_ratio) * ce + kd_ratio * T^2 * kd, differentiable.
        ce: summed cross-entropy, detached; 0 where ``kd_ratio`` is 1.
        kd: summed divergence at the temperature, without T^2, detached; 0 without a teacher.
    """

    loss: torch.Tensor
    ce: torch.Tensor
    kd: torch.Tensor


def distillation_loss(
    hidden: torch.Tensor,
    project: Callable[[torch.Tensor], torch.Tensor],
    targets: torch.Tensor,
    signal: TeacherSignal | None = None,
    *,
    vocab_size: int,
    trainable: Sequence[torch.Tensor] = (),
    kd_ratio: float = 0.0,
    temperature: float = 1.0,
    common_vocab_size: int | None = None,
    cross_entropy: CrossEntropy | None = None,
    divergence: Divergence | None = None,
) -> LossSums:
    """(1 - kd_ratio) * CE + kd_ratio * T^2 * D(teacher_T || student_T), summed over tokens, with its exact gradient.

    1. The rows are cut into chunks whose logits fit CHUNK_BYTES.
    2. A chunk's hidden states go through the student's projection, and the teacher's rows through its own.
    3. Cross-entropy and divergence give their values and, in closed form, their gradients for the student's logits.
    4. The logits' gradient goes back through the projection to the hidden states and to the projection's parameters.
    5. The chunk's logits are dropped; the sums and the gradients, scaled by what arrives from above, are all that
       backward needs.

    So memory does not grow with the batch, and the gradient is that of the plain formula.

    Args:
        hidden: the student's last hidden states at the supervised positions, ``[n, d]``.
        project: the student's output layer, ``[c, d] -> [c, v]``; any differentiable callable, LoRA and bias included.
        targets: the token ids to predict, ``[n]``, int64.
        signal: the teacher's word on the same rows; needed where ``kd_ratio`` > 0.
        vocab_size: v, to size the chunks.
        trainable: the parameters inside ``project`` that take a gradient.
        kd_ratio: share of the divergence, 0 to 1. At 0 no teacher is asked, at 1 no cross-entropy is formed.
        temperature: T; both distributions are softmax(logits / T) in the divergence. As T grows, T^2 * KL tends to half
            the mean squared difference of the centred logits (Hinton et al. 2015, eq. 4).
        common_vocab_size: compare only the first so many tokens, renormalised; for vocabularies that differ by padding
            rows. Default: all.
        cross_entropy: default :class:`CrossEntropy`.
        divergence: default :class:`ForwardKL`.

    Raises:
        ValueError: ``kd_ratio`` > 0 without a signal.
    """
    if kd_ratio > 0 and signal is None:
        raise ValueError(f"kd_ratio is {kd_ratio}, but there is no teacher signal")
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or any(p.requires_grad for p in trainable))
    chunk_rows = max(1, CHUNK_BYTES // (4 * vocab_size * _BUFFERS))

    def chunk_loss(logits: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return _chunk_loss(
            logits.float(),
            targets[start:stop],
            signal.logits(start, stop).float() if signal is not None and kd_ratio > 0 else None,
            kd_ratio,
            temperature,
            common_vocab_size,
            cross_entropy or CrossEntropy(),
            divergence or ForwardKL(),
        )

    weights = (1 - kd_ratio, kd_ratio * temperature**2)
    return LossSums(*_ChunkedLoss.apply(project, chunk_loss, weights, chunk_rows, differentiate, hidden, *trainable))


def _chunk_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    kd_ratio: float,
    temperature: float,
    common_vocab_size: int | None,
    cross_entropy: CrossEntropy,
    divergence: Divergence,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ce sum, kd sum, gradient [c, v] of the mixed loss for the logits) of one chunk; float32 throughout."""
    ce = kd = logits.new_zeros(())
    gradient = None
    if kd_ratio < 1:
        values, gradient = cross_entropy(logits.log_softmax(-1), targets)
        ce = values.sum()
        gradient.mul_(1 - kd_ratio)
    if teacher_logits is not None:
        v = common_vocab_size or logits.shape[-1]
        values, kd_gradient = divergence(
            (logits[:, :v] / temperature).log_softmax(-1), (teacher_logits[:, :v] / temperature).log_softmax(-1)
        )
        kd = values.sum()
        if gradient is None:
            gradient = torch.zeros_like(logits)
        # T^2 from the loss, 1/T from the chain rule through logits / T.
        gradient[:, :v].add_(kd_gradient, alpha=kd_ratio * temperature)
    assert gradient is not None
    return ce, kd, gradient


class _ChunkedLoss(torch.autograd.Function):
    """Walks the chunks in forward and keeps the finished gradients for backward."""

    @staticmethod
    def forward(ctx, project, chunk_loss, weights, chunk_rows, differentiate, hidden, *trainable):
        hidden_gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(p, dtype=torch.float32) for p in trainable] if differentiate else []
        ce_sum = kd_sum = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), chunk_rows):
            rows = hidden[start : start + chunk_rows].detach().requires_grad_(differentiate)  # [c, d]
            with torch.set_grad_enabled(differentiate):
                logits = project(rows)  # [c, v]
            ce, kd, gradient = chunk_loss(logits.detach(), start, start + len(rows))
            ce_sum, kd_sum = ce_sum + ce, kd_sum + kd
            if differentiate:
                found = torch.autograd.grad(logits, [rows, *trainable], gradient.to(logits.dtype))
                hidden_gradient[start : start + len(rows)] = found[0]
                for total, part in zip(gradients, found[1:], strict=True):
                    total += part
        ctx.save_for_backward(hidden_gradient, *(g.to(p.dtype) for g, p in zip(gradients, trainable, strict=False)))
        ctx.mark_non_differentiable(ce_sum, kd_sum)
        return weights[0] * ce_sum + weights[1] * kd_sum, ce_sum, kd_sum

    @staticmethod
    def backward(ctx, loss_gradient, *_):
        return None, None, None, None, None, *(g * loss_gradient.to(g.dtype) for g in ctx.saved_tensors)
