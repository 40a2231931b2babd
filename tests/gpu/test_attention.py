"""Packed rows on CUDA takes the branch that is meant, and its numbers are those of float64."""

import pytest
import torch

from distill_tune.models import packed_rows
from distill_tune.models.packed_rows import PackedRows

pytestmark = pytest.mark.gpu

LENGTHS = (5, 1, 400, 130)
FLASH, FLEX, ROWS = "_varlen", "_flex", "_row_by_row"


def exact(q, k, v, window, softcap):
    s = q.shape[2]
    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).to(q.device)
    distance = torch.arange(s)[:, None] - torch.arange(s)
    seen = (row[:, None] == row) & ((distance >= 0) & (distance < (window or s))).to(q.device)
    scores = (q * 0.3) @ k.repeat_interleave(2, 1).transpose(2, 3)
    scores = softcap * (scores / softcap).tanh() if softcap else scores
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(
    ("dtype", "softcap", "branch"),
    [
        (torch.bfloat16, None, FLASH),
        (torch.float32, None, ROWS),
        (torch.bfloat16, 2.0, FLEX),
        (torch.float32, 2.0, FLEX),
    ],
)
def test_it_is_float64s(dtype, softcap, branch, window, monkeypatch):
    if branch == FLASH and not packed_rows._has_varlen():
        branch = ROWS
    taken = []
    for name in (FLASH, FLEX, ROWS):
        function = getattr(packed_rows, name)

        def spy(*arguments, name=name, function=function):
            taken.append(name)
            return function(*arguments)

        monkeypatch.setattr(packed_rows, name, spy)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), 64) for heads in (4, 2, 2, 4)]
    *qkv, upstream = (torch.randn(shape, generator=generator).to("cuda", dtype) for shape in shapes)
    qkv = [x.requires_grad_() for x in qkv]
    found = PackedRows(LENGTHS, torch.device("cuda")).attend(*qkv, scale=0.3, window=window, softcap=softcap)
    found = [found, *torch.autograd.grad(found, qkv, upstream)]
    in_float64 = [x.detach().double().requires_grad_() for x in qkv]
    wanted = exact(*in_float64, window, softcap)
    wanted = [wanted, *torch.autograd.grad(wanted, in_float64, upstream.double())]
    assert taken == [branch]
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() / theirs.norm() < (1e-5 if dtype == torch.float32 else 1e-2)
