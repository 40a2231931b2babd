"""A record beside the student's logits on CUDA: as often read and written as where there is no teacher."""

import torch
import triton
import triton.language as tl

from distill_tune.losses.against_record import against
from distill_tune.losses.mixture import Mixture
from distill_tune.losses.sparse import SparseSignal

# Columns of a row that a program holds at a time.
_BLOCK = 4_096


@triton.jit
def _sums_of_exponentials(
    logits, largest, scaled, plain, stride, v, temperature, PLAIN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    top, of_scaled, of_plain = -1e30, 0.0, 0.0  # not -inf, which must not be subtracted from itself
    for start in range(0, v, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + column, mask=column < v, other=float("-inf")).to(tl.float32)
        new = tl.maximum(top, tl.max(x, 0))
        of_scaled = of_scaled * tl.exp((top - new) / temperature) + tl.sum(tl.exp((x - new) / temperature), 0)
        if PLAIN:
            of_plain = of_plain * tl.exp(top - new) + tl.sum(tl.exp(x - new), 0)
        top = new
    tl.store(largest + row, top)
    tl.store(scaled + row, of_scaled)
    if PLAIN:
        tl.store(plain + row, of_plain)


@triton.jit
def _gradient(
    logits,
    out,
    targets,
    shift,
    of_scaled,
    of_plain,
    stride,
    out_stride,
    v,
    temperature,
    of_target,
    PLAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    less, scaled, plain = tl.load(shift + row), tl.load(of_scaled + row), tl.load(of_plain + row)
    target = tl.load(targets + row)
    for start in range(0, v, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + row * stride + column, mask=column < v, other=float("-inf")).to(tl.float32) - less
        gradient = scaled * tl.exp(x / temperature) + tl.where(column == target, of_target, 0.0)
        if PLAIN:
            gradient += plain * tl.exp(x)
        tl.store(out + row * out_stride + column, gradient.to(out.dtype.element_ty), mask=column < v)


def losses_and_gradient(
    mixture: Mixture, logits: torch.Tensor, targets: torch.Tensor, record: SparseSignal, gradient: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy and divergence of each row, ``[c]`` float32, and the mixture's gradient for the logits.

    Args:
        logits: the student's, without a cap, ``[c, v]``, any float dtype; overwritten.
        targets: token ids ``[c]``.
        record: of the same rows and tokens.
        gradient: where it goes, ``[c, v]``; may be ``logits`` itself.
    """
    (c, v), temperature, ce_share = logits.shape, mixture.temperature, 1 - mixture.kd_ratio
    ce, kd = (torch.zeros(c, dtype=torch.float32, device=logits.device) for _ in range(2))
    if c == 0:
        return ce, kd
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    is_token, ids = record.is_token, record.ids.long()
    ids = torch.where(is_token, ids, ids[:, :1])  # what only fills a row says nothing of its token
    at_target, at_tokens = logits.gather(1, targets[:, None]).float(), logits.gather(1, ids).float()
    logits.scatter_(1, ids, -torch.inf)  # so that the kernels see the rest alone
    largest, scaled, plain = (at_target.new_empty(c, 1) for _ in range(3))
    has_plain = ce_share > 0 and temperature != 1
    settings = {"PLAIN": has_plain, "BLOCK": min(_BLOCK, triton.next_power_of_2(v)), "num_warps": 8}
    _sums_of_exponentials[(c,)](logits, largest, scaled, plain, logits.stride(0), v, float(temperature), **settings)

    shift = torch.maximum(largest, at_tokens.amax(-1, keepdim=True))
    at_tokens = at_tokens - shift
    rest = scaled * ((largest - shift) / temperature).exp()
    tokens = (at_tokens / temperature).exp() * is_token
    found = against(record, mixture.divergence, at_tokens / temperature, tokens, rest)
    weight = mixture.kd_weight / temperature  # 1/T from the chain rule through logits / T
    of_tokens, of_rest, of_plain = found.of_tokens * weight, found.of_rest * weight, torch.zeros_like(rest)
    of_target = targets
    if ce_share:
        ce_tokens, ce_sum = tokens, found.total
        if has_plain:
            ce_tokens = at_tokens.exp() * is_token
            ce_sum = plain * (largest - shift).exp() + ce_tokens.sum(-1, keepdim=True)
            of_plain = ce_share / ce_sum
        else:
            of_rest = of_rest + ce_share / ce_sum
        is_target = is_token & (ids == targets[:, None])
        of_tokens = of_tokens + ce_tokens * (ce_share / ce_sum) - ce_share * is_target
        of_target = torch.where(is_target.any(-1), -1, targets)
        ce = (ce_sum.log() + shift - at_target)[:, 0]

    wanted, gradient = gradient, gradient if gradient.stride(1) == 1 else gradient.contiguous()
    _gradient[(c,)](
        logits,
        gradient,
        of_target,
        shift,
        of_rest.contiguous(),
        of_plain,
        logits.stride(0),
        gradient.stride(0),
        v,
        float(temperature),
        -float(ce_share),
        **settings,
    )
    gradient.scatter_add_(1, ids, of_tokens.to(gradient.dtype))
    if gradient is not wanted:
        wanted.copy_(gradient)
    return ce, found.values
