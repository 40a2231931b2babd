"""The elementwise half of the head: a chunk's logits become its losses and, in place, their own gradient."""

import dataclasses
import functools
import importlib.util
from collections.abc import Sequence

import torch

from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import HUGE, Distribution, Divergence, ForwardKL, distribution
from distill_tune.losses.signals import capped
from distill_tune.losses.token_weights import TokenWeight

# So much of a chunk's logits is worked on at a time, in float32: it stays in a CPU's cache from one pass to the next;
# elsewhere it is enough for kernels at full speed, and what they leave between them is small beside the chunk.
_PART_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """(1 - kd_ratio) * CE + kd_ratio * T^2 * D(teacher_T || student_T); see :func:`distillation_loss`.

    Attributes:
        teachers: of each teacher whose divergence is part of the sum, its share and the cap of its logits.
    """

    kd_ratio: float
    temperature: float
    common_vocab_size: int | None
    cross_entropy: CrossEntropy
    divergence: Divergence
    token_weight: TokenWeight | None = None
    temperature_squared: bool = True
    softcap: float | None = None
    teachers: Sequence[tuple[float, float | None]] = ((1.0, None),)

    @property
    def kd_weight(self) -> float:
        """What a teacher's divergence counts in the loss, apart from its share."""
        return self.kd_ratio * (self.temperature**2 if self.temperature_squared else 1)


def losses_and_gradient(
    mixture: Mixture,
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: Sequence[torch.Tensor],
    dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and divergence of some rows, float32, and the mixture's gradient for the logits, ``[c, v]``.

    Args:
        logits: the student's, before any cap, ``[c, v]``; overwritten by the gradient where they are of ``dtype``.
        targets: token ids ``[c]``.
        teacher_logits: of each of the mixture's teachers ``[c, v_t]``, before any cap, overwritten; empty without a
            divergence.
        dtype: of the gradient.
    """
    out = logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
    if _has_kernel(mixture, logits):
        from distill_tune.losses import triton_rows

        ce, kd = triton_rows.losses_and_gradient(
            logits,
            targets,
            teacher_logits[0] if teacher_logits else None,
            out,
            kd_ratio=mixture.kd_ratio,
            kd_weight=mixture.kd_weight,
            temperature=mixture.temperature,
            common_vocab_size=mixture.common_vocab_size,
            softcap=mixture.softcap,
            teacher_softcap=mixture.teachers[0][1],
        )
        return ce.sum(), kd.sum(), out
    ce = kd = torch.zeros((), device=logits.device)
    part_bytes = _PART_BYTES.get(logits.device.type, _PART_BYTES["cuda"])
    rows = max(1, part_bytes // (4 * logits.shape[1]))
    can_share = _can_share(mixture, logits, teacher_logits)
    # Made once for all parts: memory that is new each time costs as much as an exponential.
    scratch = [] if can_share else [logits.new_empty(rows, logits.shape[1], dtype=torch.float32) for _ in range(3)]
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        teacher_parts = [of_teacher[part].float() for of_teacher in teacher_logits]
        student = logits[part].float()
        if can_share:
            ce_part, kd_part, gradient = _shared(mixture, student, targets[part], teacher_parts)
        else:
            own = [memory[: len(student)] for memory in scratch]
            ce_part, kd_part, gradient = _plain(mixture, student, targets[part], teacher_parts, own)
        if gradient.data_ptr() != out[part].data_ptr():
            out[part] = gradient
        ce, kd = ce + ce_part, kd + kd_part
    return ce, kd, out


def _is_usual(mixture: Mixture) -> bool:
    plain = type(mixture.cross_entropy) is CrossEntropy and type(mixture.divergence) is ForwardKL
    return plain and mixture.token_weight is None and [share for share, _ in mixture.teachers] == [1.0]


def _has_kernel(mixture: Mixture, logits: torch.Tensor) -> bool:
    """On CUDA, for the losses that the kernel knows, where Triton is installed (PyTorch's CUDA builds bring it)."""
    return logits.is_cuda and _is_usual(mixture) and _has_triton()


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _can_share(mixture: Mixture, logits: torch.Tensor, teacher_logits: Sequence[torch.Tensor]) -> bool:
    """Whether cross-entropy and divergence are of the same student's distribution, over the same tokens."""
    v = logits.shape[1]
    same = all(of_teacher.shape[1] == v for of_teacher in teacher_logits) and mixture.common_vocab_size in (None, v)
    uncapped = mixture.softcap is None and mixture.teachers[0][1] is None
    return bool(teacher_logits) and _is_usual(mixture) and same and uncapped


def _shared(
    mixture: Mixture, student: torch.Tensor, targets: torch.Tensor, teachers: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`_plain` for cross-entropy and forward KL: as few exponentials a logit as there can be, all in place.

    With shifted logits s and t, and Z the sums of their exponentials, KL = sum(e^t (t - s)) / Z_t - log Z_t + log Z_s.
    """
    teacher = teachers[0]
    temperature, has_ce = mixture.temperature, mixture.kd_ratio < 1
    student.sub_(student.amax(-1, keepdim=True)).clamp_(min=-HUGE)
    teacher.sub_(teacher.amax(-1, keepdim=True)).clamp_(min=-HUGE)
    at_target = student.gather(1, targets[:, None])
    of_ce = None
    if temperature != 1:
        of_ce = student.exp() if has_ce else None
        student.div_(temperature)
        teacher.div_(temperature)
    difference = teacher - student
    student_sum = student.exp_().sum(-1, keepdim=True)
    teacher_sum = teacher.exp_().sum(-1, keepdim=True)
    gap = torch.linalg.vecdot(teacher, difference)[:, None] / teacher_sum
    kd = (gap - teacher_sum.log() + student_sum.log()).sum()
    if temperature == 1:
        ce_sum = student_sum
        gradient = student.div_(student_sum).sub_(teacher.mul_(mixture.kd_ratio / teacher_sum))
    else:
        weight = mixture.kd_weight / temperature  # 1/T from the chain rule through logits / T
        gradient = student.mul_(weight / student_sum).sub_(teacher.mul_(weight / teacher_sum))
        if of_ce is not None:
            ce_sum = of_ce.sum(-1, keepdim=True)
            gradient.add_(of_ce.mul_((1 - mixture.kd_ratio) / ce_sum))
    if not has_ce:
        return kd.new_zeros(()), kd, gradient
    share = gradient.new_full(targets[:, None].shape, mixture.kd_ratio - 1)
    gradient.scatter_add_(1, targets[:, None], share)
    return (ce_sum.log() - at_target).sum(), kd, gradient


def _plain(
    mixture: Mixture,
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: Sequence[torch.Tensor],
    scratch: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ce sum, kd sum, gradient ``[b, v]``), float32 throughout.

    Args:
        scratch: three times ``[b, v]``, to work in.
    """
    slope = None
    if mixture.softcap is not None:
        logits = (logits / mixture.softcap).tanh_()
        slope = 1 - logits.square()
        logits.mul_(mixture.softcap)

    ce = kd = logits.new_zeros(())
    v, temperature = mixture.common_vocab_size or logits.shape[-1], mixture.temperature
    is_same = temperature == 1 and v == logits.shape[-1]  # cross-entropy and divergence see one distribution
    gradient = student = None
    if mixture.kd_ratio < 1:
        student = distribution(logits if is_same or not teacher_logits else logits.clone(), scratch[0])
        values, gradient = mixture.cross_entropy(student, targets, scratch[1])
        ce = values.sum()
        gradient.mul_(1 - mixture.kd_ratio)
    if teacher_logits and (student is None or not is_same):
        student = distribution(_scaled(logits[:, :v], temperature), scratch[0][:, :v])
    for number, ((share, softcap), of_teacher) in enumerate(zip(mixture.teachers, teacher_logits, strict=False), 1):
        assert student is not None
        of_teacher = capped(of_teacher[:, :v], softcap)
        weight, weigh = None, mixture.token_weight
        if weigh is not None and temperature != 1:
            weight = weigh(distribution(of_teacher.clone(), scratch[2][:, :v]), targets)
        teacher = distribution(_scaled(of_teacher, temperature), scratch[2][:, :v])
        if weigh is not None and temperature == 1:
            weight = weigh(teacher, targets)
        # A divergence may overwrite what it is given.
        own = student if number == len(teacher_logits) else Distribution(*(part.clone() for part in student))
        values, kd_gradient = mixture.divergence(own, teacher)
        if weight is not None:
            values, kd_gradient = values * weight, kd_gradient.mul_(weight[:, None])
        kd = kd + share * values.sum()
        # 1/T from the chain rule through logits / T.
        factor = share * mixture.kd_weight / temperature
        if gradient is None and is_same and len(teacher_logits) == 1:
            gradient = kd_gradient.mul_(factor)
            continue
        if gradient is None:  # and not that of a first teacher, whose memory the next one takes
            gradient = torch.zeros_like(logits)
        gradient[:, :v].add_(kd_gradient, alpha=factor)
    assert gradient is not None
    return ce, kd, gradient if slope is None else gradient.mul_(slope)


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """In place."""
    return logits if temperature == 1 else logits.div_(temperature)
