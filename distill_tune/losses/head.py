"""The KD head: the loss owns the output layer, so that no full set of logits is ever made."""

import dataclasses

import torch

from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import Divergence, ForwardKL
from distill_tune.losses.projection import Projection
from distill_tune.losses.rows import Mixture, losses_and_gradient
from distill_tune.losses.signals import TeacherSignal

# What the logits of one chunk may take, student and teacher together (other devices as a CPU): enough for products that
# run at full speed.
CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
_EVEN_ROWS = 64  # products of a multiple of so many rows run best


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
    projection: Projection,
    targets: torch.Tensor,
    signal: TeacherSignal | None = None,
    *,
    kd_ratio: float = 0.0,
    temperature: float = 1.0,
    common_vocab_size: int | None = None,
    cross_entropy: CrossEntropy | None = None,
    divergence: Divergence | None = None,
) -> LossSums:
    """(1 - kd_ratio) * CE + kd_ratio * T^2 * D(teacher_T || student_T), summed over tokens, with its exact gradient.

    1. The rows are cut into chunks whose logits fit CHUNK_BYTES.
    2. A chunk's hidden states go through the student's projection, and the teacher's rows through its own: once.
    3. Cross-entropy and divergence give their values and, in closed form, the gradient for the student's logits, which
       is written over them. All that is float32; the gradient takes the dtype of the hidden states.
    4. One more product takes it back to the hidden states, and one each to the projection's trainable parameters.
    5. The next chunk uses the same memory; the sums and the gradients, scaled by what arrives from above, are all that
       backward needs.

    So memory does not grow with the batch, and the gradient is that of the plain formula. Under FSDP the projection's
    weight must be gathered when this is called and until backward is through.

    Args:
        hidden: the student's last hidden states at the supervised positions, ``[n, d]``.
        projection: the student's output layer.
        targets: the token ids to predict, ``[n]``, int64.
        signal: the teacher's word on the same rows; needed where ``kd_ratio`` > 0.
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
    if kd_ratio == 0:
        signal = None
    mixture = Mixture(
        kd_ratio,
        temperature,
        common_vocab_size,
        cross_entropy or CrossEntropy(),
        divergence or ForwardKL(),
        softcap=projection.softcap,
        teacher_softcap=signal.softcap if signal is not None else None,
    )
    trainable = projection.trainable
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or bool(trainable))
    return LossSums(*_ChunkedLoss.apply(projection, mixture, targets, signal, differentiate, hidden, *trainable))


class _ChunkedLoss(torch.autograd.Function):
    """Walks the chunks in forward and keeps the finished gradients for backward."""

    @staticmethod
    def forward(ctx, projection, mixture, targets, signal, differentiate, hidden, *trainable):
        v_t = signal.vocab_size if signal is not None else 0
        rows = chunk_rows(len(hidden), chunk_bytes_per_row(projection.vocab_size, v_t, hidden.dtype), hidden.device)
        memory = projection.memory(rows, slot=0)
        teacher_memory = signal.memory(rows) if signal is not None else None
        hidden_gradient = torch.empty_like(hidden)
        totals = [torch.zeros_like(p, dtype=torch.float32) for p in trainable] if differentiate else []
        ce_sum = kd_sum = hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), rows):
            chunk = hidden[start : start + rows].detach().requires_grad_(differentiate)  # [c, d]
            c = len(chunk)
            with torch.set_grad_enabled(differentiate):
                logits = projection.logits(chunk, _first(memory, c))  # [c, v]
            teacher_logits = None
            if signal is not None:
                teacher_logits = signal.logits(start, start + c, _first(teacher_memory, c))
            ce, kd, gradient = losses_and_gradient(
                mixture, logits.detach(), targets[start : start + c], teacher_logits, hidden.dtype
            )
            ce_sum, kd_sum = ce_sum + ce, kd_sum + kd
            if differentiate:
                hidden_gradient[start : start + c] = projection.backward(chunk, logits, gradient, totals)
        ctx.save_for_backward(hidden_gradient, *(g.to(p.dtype) for g, p in zip(totals, trainable, strict=False)))
        ctx.mark_non_differentiable(ce_sum, kd_sum)
        loss = (1 - mixture.kd_ratio) * ce_sum + mixture.kd_ratio * mixture.temperature**2 * kd_sum
        return loss, ce_sum, kd_sum

    @staticmethod
    def backward(ctx, loss_gradient, *_):
        return None, None, None, None, None, *(g * loss_gradient.to(g.dtype) for g in ctx.saved_tensors)


def _first(memory: torch.Tensor | None, rows: int) -> torch.Tensor | None:
    return None if memory is None else memory[:rows]


def chunk_bytes_per_row(vocab_size: int, teacher_vocab_size: int, dtype: torch.dtype) -> int:
    """Logits of both in float32, and the gradient where it cannot take their place."""
    gradient = 0 if dtype == torch.float32 else dtype.itemsize
    return vocab_size * (4 + gradient) + teacher_vocab_size * 4


def chunk_rows(n: int, bytes_per_row: int, device: torch.device) -> int:
    """Rows of a chunk: as many as the budget holds, and chunks of about the same size."""
    most = max(1, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"]) // bytes_per_row)
    if most > _EVEN_ROWS:
        most -= most % _EVEN_ROWS
    num_chunks = max(1, -(-n // most))
    even = -(-n // num_chunks)
    return min(most, even + -even % _EVEN_ROWS) if n > most else max(1, n)
