"""Attention of packed rows: each way to compute it, its output and gradients, against float64 on the CPU."""

import torch

from distill_tune.models import packed_rows
from distill_tune.models.packed_rows import PackedRows
from first_hour.numbers import off
from first_hour.outcome import Deviation, Settings

LENGTHS = {True: (5, 1, 40, 18), False: (300, 1, 777, 513, 128)}
HEADS, KV_HEADS, HEAD_DIM, SCALE = 8, 2, 64, 0.11


def packed_flash(settings: Settings, window: int | None = None) -> Deviation:
    if not packed_rows._has_varlen():
        raise RuntimeError(f"PyTorch {torch.__version__} has no varlen_attn with windows: a call a row is taken")
    return _near(settings, "bf16", packed_rows._varlen, window)


def flex(settings: Settings, dtype: str, window: int | None = None) -> Deviation:
    softcap = 2.0
    compiled = packed_rows._compiled_flex_attention()

    def attention(*arguments):
        return packed_rows._flex(compiled, *arguments, softcap)

    return _near(settings, dtype, attention, window, softcap)


def row_by_row(settings: Settings, dtype: str, window: int | None = None, softcap: float | None = None) -> Deviation:
    def attention(*arguments):
        return packed_rows._row_by_row(*arguments, softcap, 0.0)

    return _near(settings, dtype, attention, window, softcap)


def _near(settings, dtype, attention, window=None, softcap=None):
    lengths = LENGTHS[settings.small]
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(lengths), HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    *qkv, upstream = (torch.randn(shape, generator=generator).to(kind) for shape in shapes)

    here = [x.to(settings.device).requires_grad_() for x in qkv]
    mask = PackedRows(lengths, torch.device(settings.device))
    found = attention(*here, mask, SCALE, window)
    found = [found, *torch.autograd.grad(found, here, upstream.to(settings.device))]

    exact = [x.double().requires_grad_() for x in qkv]
    wanted = plain(*exact, lengths, window, softcap)
    wanted = [wanted, *torch.autograd.grad(wanted, exact, upstream.double())]
    return Deviation(off(found, wanted), 1e-2 if dtype == "bf16" else 1e-5)


def plain(q, k, v, lengths, window=None, softcap=None):
    """The formula as it is written: one matrix of scores, and what may be seen of it."""
    s = q.shape[2]
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(s)[:, None] - torch.arange(s)
    seen = (row[:, None] == row) & (distance >= 0) & (distance < (window or s))
    scores = (q * SCALE) @ k.repeat_interleave(HEADS // KV_HEADS, 1).transpose(2, 3)
    scores = softcap * (scores / softcap).tanh() if softcap else scores
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(HEADS // KV_HEADS, 1)
