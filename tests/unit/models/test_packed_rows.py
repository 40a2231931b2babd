"""Each way to compute attention of packed rows against one dense mask."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from distill_tune.models import packed_rows
from distill_tune.models.block_mask import block_mask
from distill_tune.models.packed_rows import PackedRows

LENGTHS = (5, 1, 40, 18)
ROWS = PackedRows(LENGTHS, torch.device("cpu"))


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), 16) for heads in (4, 2, 2)]
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def dense(q, k, v, window=None, softcap=None):
    s = q.shape[2]
    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    distance = torch.arange(s)[:, None] - torch.arange(s)
    seen = (row[:, None] == row) & (distance >= 0) & (distance < (window or s))
    scores = (q * 0.3) @ k.repeat_interleave(2, 1).transpose(2, 3)
    scores = softcap * (scores / softcap).tanh() if softcap else scores
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)


def assert_same(found, wanted, qkv):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(wanted)
    for ours, theirs in zip(
        torch.autograd.grad(found, qkv, upstream), torch.autograd.grad(wanted, qkv, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 7, 30])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_row_by_row(qkv, window, softcap):
    found = ROWS.attend(*qkv, scale=0.3, window=window, softcap=softcap)
    assert_same(found, dense(*qkv, window, softcap), qkv)


@pytest.mark.parametrize("window", [None, 7])
def test_flex_attention_of_capped_scores(qkv, window):
    """What CUDA takes; here without its compiler."""
    with torch.no_grad():
        found = packed_rows._flex(flex_attention, *(x.detach() for x in qkv), ROWS, 0.3, window, 2.0)
        torch.testing.assert_close(found, dense(*qkv, window, 2.0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("takes_grouped_keys", [True, False])
def test_the_flash_kernel_is_called_by_its_contract(qkv, window, takes_grouped_keys, monkeypatch):
    """Its kernel needs CUDA; here a stand-in does what its documentation says."""

    def stand_in(q, k, v, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa=False):
        assert (longest, longest_k) == (40, 40)
        assert starts.tolist() == [0, 5, 6, 46, 64] == starts_k.tolist()
        assert starts.dtype == torch.int32
        assert enable_gqa == takes_grouped_keys or k.shape[1] == q.shape[1]
        rows = []
        for start, stop in itertools.pairwise(starts):
            one = [x[start:stop].transpose(0, 1)[None] for x in (q, k, v)]
            distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
            left, right = window_size
            seen = (distance >= -right) & ((distance <= left) | torch.tensor(left == -1))
            rows.append(F.scaled_dot_product_attention(*one, attn_mask=seen, scale=scale, enable_gqa=enable_gqa))
        return torch.cat(rows, 2)[0].transpose(0, 1)

    names = {"window_size"} | ({"enable_gqa"} if takes_grouped_keys else set())
    monkeypatch.setattr(packed_rows, "varlen_attn", stand_in)
    monkeypatch.setattr(packed_rows, "_VARLEN_ARGUMENTS", names)
    assert_same(packed_rows._varlen(*qkv, ROWS, 0.3, window), dense(*qkv, window), qkv)


def test_what_a_teacher_asks_for_in_inference_mode_a_student_can_save():
    with torch.inference_mode():
        rows = PackedRows(LENGTHS, torch.device("cpu"))
        made = [rows.boundaries, rows.positions, rows.block_mask(7).kv_indices]
    assert not any(tensor.is_inference() for tensor in made)


@pytest.mark.parametrize("window", [None, 1, 40, 128, 200])
@pytest.mark.parametrize("lengths", [(1,), (128,), (300,), (127, 1, 129, 400), (5,) * 60, (1000, 3, 256, 256, 70)])
def test_a_block_mask_from_bounds_is_that_of_all_pairs(lengths, window):
    mask = block_mask(lengths, window, torch.device("cpu"))
    s = sum(lengths)
    wanted = create_block_mask(mask.mask_mod, None, None, s, s, device="cpu")
    assert mask.shape == wanted.shape
    for kind in ("kv", "full_kv", "q", "full_q"):
        count, found = getattr(wanted, f"{kind}_num_blocks"), getattr(mask, f"{kind}_indices")
        assert torch.equal(getattr(mask, f"{kind}_num_blocks"), count)
        counted = torch.arange(found.shape[-1]) < count[..., None]
        assert torch.equal(found[counted], getattr(wanted, f"{kind}_indices")[counted])


def test_a_block_mask_looks_at_blocks_and_not_at_pairs_of_positions():
    with MemTracker() as tracker:
        block_mask((512,) * 32, 4096, torch.device("cpu"))
    # A byte for each of the pairs would be 256 MiB.
    assert tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] < 2**20
