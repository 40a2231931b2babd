"""The elementwise half of the head on CUDA: one kernel reads each logit twice and writes its gradient once."""

import torch
import triton
import triton.language as tl

# Columns of a row that a program holds at a time.
_BLOCK = 4_096


@triton.jit
def _softcapped(x, cap):
    # tanh, of which Triton's interpreter has none
    return cap * (1 - 2 / (1 + tl.exp(2 * x / cap)))


@triton.jit
def _losses_and_gradient(
    student,
    teacher,
    out,
    targets,
    ce,
    kd,
    student_stride,
    teacher_stride,
    out_stride,
    v,
    common_v,
    ce_weight,
    kd_weight,
    temperature,
    student_cap,
    teacher_cap,
    HAS_CE: tl.constexpr,
    HAS_KD: tl.constexpr,
    SHARED: tl.constexpr,
    STUDENT_CAPPED: tl.constexpr,
    TEACHER_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    out += row * out_stride
    target = tl.load(targets + row)

    # Maximum and sum of exponentials: of the student for CE (s) and at the temperature (q), of the teacher (t); and the
    # teacher's expectation of its scaled logits over the student's.
    s_max, q_max, t_max = -1e30, -1e30, -1e30  # not -inf, which must not be subtracted from itself
    s_sum, q_sum, t_sum, gap, target_logit = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, v, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(student + column, mask=column < v, other=float("-inf")).to(tl.float32)
        if STUDENT_CAPPED:
            x = tl.where(column < v, _softcapped(x, student_cap), float("-inf"))
        if HAS_CE or SHARED:
            new_max = tl.maximum(s_max, tl.max(x, 0))
            s_sum = s_sum * tl.exp(s_max - new_max) + tl.sum(tl.exp(x - new_max), 0)
            s_max = new_max
        if HAS_CE:
            target_logit += tl.sum(tl.where(column == target, x, 0.0), 0)
        if HAS_KD:
            q = tl.where(column < common_v, x / temperature, float("-inf"))
            if not SHARED:
                new_max = tl.maximum(q_max, tl.max(q, 0))
                q_sum = q_sum * tl.exp(q_max - new_max) + tl.sum(tl.exp(q - new_max), 0)
                q_max = new_max
            t = tl.load(teacher + column, mask=column < common_v, other=float("-inf")).to(tl.float32)
            if TEACHER_CAPPED:
                t = tl.where(column < common_v, _softcapped(t, teacher_cap), float("-inf"))
            t = t / temperature
            new_max = tl.maximum(t_max, tl.max(t, 0))
            old = tl.exp(t_max - new_max)
            weight = tl.exp(t - new_max)
            difference = tl.maximum(t, -1e30) - tl.maximum(q, -1e30)
            gap = gap * old + tl.sum(weight * difference, 0)
            t_sum = t_sum * old + tl.sum(weight, 0)
            t_max = new_max
    if SHARED:
        q_max, q_sum = s_max, s_sum
    if HAS_CE:
        tl.store(ce + row, s_max + tl.log(s_sum) - target_logit)
    if HAS_KD:
        tl.store(kd + row, (gap / t_sum - (t_max - q_max)) + (tl.log(q_sum) - tl.log(t_sum)))

    for start in range(0, v, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(student + column, mask=column < v, other=float("-inf")).to(tl.float32)
        slope = 1.0
        if STUDENT_CAPPED:
            x = _softcapped(x, student_cap)
            slope = 1 - (x / student_cap) * (x / student_cap)
        gradient = tl.zeros([BLOCK], tl.float32)
        if HAS_CE:
            gradient += ce_weight * (tl.exp(x - s_max) / s_sum - tl.where(column == target, 1.0, 0.0))
        if HAS_KD:
            t = tl.load(teacher + column, mask=column < common_v, other=float("-inf")).to(tl.float32)
            if TEACHER_CAPPED:
                t = tl.where(column < common_v, _softcapped(t, teacher_cap), float("-inf"))
            q = tl.where(column < common_v, tl.exp(x / temperature - q_max) / q_sum, 0.0)
            # 1/T from the chain rule through logits / T.
            gradient += kd_weight / temperature * (q - tl.exp(t / temperature - t_max) / t_sum)
        tl.store(out + column, (gradient * slope).to(out.dtype.element_ty), mask=column < v)


def losses_and_gradient(
    logits: torch.Tensor,
    targets: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    gradient: torch.Tensor,
    *,
    kd_ratio: float,
    kd_weight: float,
    temperature: float,
    common_vocab_size: int | None,
    softcap: float | None,
    teacher_softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and forward KL of each row, ``[c]`` float32, and the mixture's gradient for the logits.

    Args:
        logits: the student's, before any cap, ``[c, v]``, any float dtype.
        targets: token ids ``[c]``.
        teacher_logits: ``[c, v_t]``, before any cap; None for cross-entropy alone.
        gradient: where it goes, ``[c, v]``; may be ``logits`` itself.

    Raises:
        ValueError: a vocabulary that has not all that is compared.
    """
    c, v = logits.shape
    ce, kd = (torch.zeros(c, dtype=torch.float32, device=logits.device) for _ in range(2))
    if c == 0:
        return ce, kd
    common = v if common_vocab_size is None else common_vocab_size
    teacher = logits if teacher_logits is None else teacher_logits
    if common > min(v, teacher.shape[1]):
        raise ValueError(f"{common} tokens are to be compared, the logits are of {v} and {teacher.shape[1]}")
    # The kernel walks along a row from one number to the next.
    logits, teacher, targets = _along_rows(logits), _along_rows(teacher), targets.contiguous()
    wanted, gradient = gradient, _along_rows(gradient)
    _losses_and_gradient[(c,)](
        logits,
        teacher,
        gradient,
        targets,
        ce,
        kd,
        logits.stride(0),
        teacher.stride(0),
        gradient.stride(0),
        v,
        common,
        float(1 - kd_ratio),
        float(kd_weight),
        float(temperature),
        float(softcap or 1),
        float(teacher_softcap or 1),
        HAS_CE=kd_ratio < 1,
        HAS_KD=teacher_logits is not None,
        SHARED=teacher_logits is not None and temperature == 1 and common == v,
        STUDENT_CAPPED=softcap is not None,
        TEACHER_CAPPED=teacher_softcap is not None,
        BLOCK=min(_BLOCK, triton.next_power_of_2(v)),
        num_warps=8,
    )
    if gradient is not wanted:
        wanted.copy_(gradient)
    return ce, kd


def _along_rows(values: torch.Tensor) -> torch.Tensor:
    """The tensor, or where its rows do not lie whole, a copy in which they do."""
    return values if values.stride(1) == 1 else values.contiguous()
