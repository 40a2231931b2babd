"""What the head's memory comes to with vocabularies of 128k and 262k, in bytes counted without numbers."""

import collections

import pytest
import torch
from stand_in_cuda import say_cuda
from torch.distributed._tools.mem_tracker import MemTracker

from distill_tune import losses
from distill_tune.losses import head, projection, rows

triton_rows = pytest.importorskip("distill_tune.losses.triton_rows", reason="Triton has no build for this platform")

META = torch.device("meta")
D, D_TEACHER, N = 2048, 4096, 4096


def empty(*shape):
    return torch.empty(*shape, dtype=torch.bfloat16, device=META)


@pytest.mark.parametrize(("v", "rows_of_chunk"), [(128_256, 832), (262_144, 384)])
@pytest.mark.parametrize(
    "divergence",
    [
        losses.ForwardKL(),
        losses.ReverseKL(),
        losses.SymmetricKL(),
        losses.JensenShannon(),
        losses.SkewedForwardKL(),
        losses.SkewedReverseKL(),
        losses.TotalVariation(),
        losses.LogitMSE(),
        losses.TopK(100),
    ],
    ids=lambda divergence: type(divergence).__name__,
)
def test_what_a_chunk_takes_on_cuda_is_its_budget_and_some_parts(v, rows_of_chunk, divergence, monkeypatch):
    """Products give float32 themselves, and the kernel, of which all but the launch runs, works in place."""
    say_cuda(monkeypatch)
    launched = []
    kernel = collections.defaultdict(lambda: lambda logits, *rest, **named: launched.append(len(logits)))
    monkeypatch.setattr(triton_rows, "_losses_and_gradient", kernel)
    products, product = [], torch.mm
    monkeypatch.setattr(
        torch, "mm", lambda left, right, **named: products.append(named) or product(left, right, **named)
    )
    budget, part = head.CHUNK_BYTES["cuda"], rows._PART_BYTES["cuda"]
    monkeypatch.setitem(head.CHUNK_BYTES, "meta", budget)
    monkeypatch.setattr(projection, "_kept", {})
    hidden, weight = empty(N, D).requires_grad_(), empty(v, D)
    signal = losses.HiddenStates(empty(N, D_TEACHER), losses.LinearProjection(empty(v, D_TEACHER)))
    targets = torch.empty(N, dtype=torch.int64, device=META)
    with MemTracker() as tracker:
        student = losses.LinearProjection(weight)
        settings = {"kd_ratio": 0.5, "temperature": 2.0, "divergence": divergence}
        sums = losses.distillation_loss(hidden, student, targets, signal, **settings)
        sums.loss.backward()
    peak = tracker.get_tracker_snapshot("peak")[META]["Total"]
    given = 2 * (v * (D + D_TEACHER) + N * (D + D_TEACHER)) + 8 * N
    gradients = 2 * 2 * N * D
    assert 0.9 * budget < peak - given - gradients < budget + 6 * part
    assert not projection._kept and products == [{"out_dtype": torch.float32}] * 2 * -(-N // rows_of_chunk)
    assert head.chunk_rows(N, head.chunk_bytes_per_row(v, v, torch.bfloat16), torch.device("cuda")) == rows_of_chunk
    if isinstance(divergence, losses.ForwardKL):
        assert launched == [rows_of_chunk] * (N // rows_of_chunk) + [N % rows_of_chunk]
