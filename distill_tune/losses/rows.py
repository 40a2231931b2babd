"""The elementwise half of the head: a chunk's logits become its losses and, in place, their own gradient."""

import dataclasses
import functools
import importlib.util

import torch

from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import HUGE, Divergence, ForwardKL

# So much of a chunk's logits is worked on at a time, in float32: it stays in a CPU's cache from one pass to the next.
_CACHED_BYTES = 2 * 2**20


@dataclasses.dataclass(frozen=True)
class Mixture:
    """(1 - kd_ratio) * CE + kd_ratio * T^2 * D(teacher_T || student_T); see :func:`distillation_loss`."""

    kd_ratio: float
    temperature: float
    common_vocab_size: int | None
    cross_entropy: CrossEntropy
    divergence: Divergence
    softcap: float | None = None
    teacher_softcap: float | None = None


def losses_and_gradient(
    mixture: Mixture,
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and divergence of some rows, float32, and the mixture's gradient for the logits, ``[c, v]``.

    Args:
        logits: the student's, before any cap, ``[c, v]``; overwritten by the gradient where they are of ``dtype``.
        targets: token ids ``[c]``.
        teacher_logits: ``[c, v_t]``, before any cap, overwritten; None without a divergence.
        dtype: of the gradient.
    """
    out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    if _has_kernel(mixture, logits):
        from distill_tune.losses import triton_rows

        ce, kd = triton_rows.losses_and_gradient(
            logits,
            targets,
            teacher_logits,
            out,
            kd_ratio=mixture.kd_ratio,
            temperature=mixture.temperature,
            common_vocab_size=mixture.common_vocab_size,
            softcap=mixture.softcap,
            teacher_softcap=mixture.teacher_softcap,
        )
        return ce.sum(), kd.sum(), out
    ce = kd = torch.zeros((), device=logits.device)
    rows = max(1, _CACHED_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
    compute = _shared if _can_share(mixture, logits, teacher_logits) else _plain
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        teacher_part = None if teacher_logits is None else teacher_logits[part].float()
        ce_part, kd_part, gradient = compute(mixture, logits[part].float(), targets[part], teacher_part)
        if gradient.data_ptr() != out[part].data_ptr():
            out[part] = gradient
        ce, kd = ce + ce_part, kd + kd_part
    return ce, kd, out


def _is_usual(mixture: Mixture) -> bool:
    return type(mixture.cross_entropy) is CrossEntropy and type(mixture.divergence) is ForwardKL


def _has_kernel(mixture: Mixture, logits: torch.Tensor) -> bool:
    """On CUDA, for the losses that the kernel knows, where Triton is installed (PyTorch's CUDA builds bring it)."""
    return logits.is_cuda and _is_usual(mixture) and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _can_share(mixture: Mixture, logits: torch.Tensor, teacher_logits: torch.Tensor | None) -> bool:
    """Whether cross-entropy and divergence are of the same student's distribution, over the same tokens."""
    v = logits.shape[1]
    same = teacher_logits is not None and teacher_logits.shape[1] == v and mixture.common_vocab_size in (None, v)
    uncapped = mixture.softcap is None and mixture.teacher_softcap is None
    return _is_usual(mixture) and mixture.temperature == 1 and same and uncapped


def _shared(
    mixture: Mixture, student: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`_plain` for cross-entropy and forward KL at temperature 1: one exponential a logit, all in place.

    With shifted logits s and t, and Z the sums of their exponentials, KL = sum(e^t (t - s)) / Z_t - log Z_t + log Z_s.
    """
    assert teacher is not None
    student.sub_(student.amax(-1, keepdim=True)).clamp_(min=-HUGE)
    teacher.sub_(teacher.amax(-1, keepdim=True)).clamp_(min=-HUGE)
    at_target = student.gather(1, targets[:, None])
    difference = teacher - student
    student_sum = student.exp_().sum(-1, keepdim=True)
    teacher_sum = teacher.exp_().sum(-1, keepdim=True)
    gap = torch.linalg.vecdot(teacher, difference)[:, None] / teacher_sum
    kd = (gap - teacher_sum.log() + student_sum.log()).sum()
    gradient = student.div_(student_sum).sub_(teacher.mul_(mixture.kd_ratio / teacher_sum))
    if mixture.kd_ratio == 1:
        return kd.new_zeros(()), kd, gradient
    share = gradient.new_full(targets[:, None].shape, mixture.kd_ratio - 1)
    gradient.scatter_add_(1, targets[:, None], share)
    return (student_sum.log() - at_target).sum(), kd, gradient


def _plain(
    mixture: Mixture, logits: torch.Tensor, targets: torch.Tensor, teacher_logits: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ce sum, kd sum, gradient ``[b, v]``), float32 throughout."""
    slope = None
    if mixture.softcap is not None:
        capped = (logits / mixture.softcap).tanh_()
        slope = 1 - capped.square()
        logits = capped.mul_(mixture.softcap)
    if teacher_logits is not None and mixture.teacher_softcap is not None:
        teacher_logits = (teacher_logits / mixture.teacher_softcap).tanh_().mul_(mixture.teacher_softcap)

    ce = kd = logits.new_zeros(())
    gradient = log_probs = None
    if mixture.kd_ratio < 1:
        log_probs = logits.log_softmax(-1)
        values, gradient = mixture.cross_entropy(log_probs, targets)
        ce = values.sum()
        gradient.mul_(1 - mixture.kd_ratio)
    if teacher_logits is not None:
        v, temperature = mixture.common_vocab_size or logits.shape[-1], mixture.temperature
        if log_probs is None or temperature != 1 or v < logits.shape[-1]:
            log_probs = _log_probs(logits[:, :v], temperature)
        values, kd_gradient = mixture.divergence(log_probs, _log_probs(teacher_logits[:, :v], temperature))
        kd = values.sum()
        if gradient is None:
            gradient = torch.zeros_like(logits)
        # T^2 from the loss, 1/T from the chain rule through logits / T.
        gradient[:, :v].add_(kd_gradient, alpha=mixture.kd_ratio * temperature)
    assert gradient is not None
    return ce, kd, gradient if slope is None else gradient.mul_(slope)


def _log_probs(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)
