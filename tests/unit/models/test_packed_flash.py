"""The branch that CUDA takes in half precision, on the CPU: PyTorch's operators with kernels of stand_in_cuda.py."""

import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf
from stand_in_cuda import cuda_branches, varlen

from distill_tune import models
from distill_tune.data.batch import joined
from distill_tune.models import attention, packed_rows
from distill_tune.models.packed_rows import PackedRows, copied_for_queries

pytestmark = pytest.mark.skipif(varlen is None, reason="this PyTorch has no attention of packed rows")

LENGTHS = (5, 1, 40, 18)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _on_cuda():
    with cuda_branches():
        yield


def qkv(dtype, kv_heads=2, head_dim=16, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, sum(lengths), heads, head_dim) for heads in (4, kv_heads, kv_heads)]
    # As a layer has them: heads and positions change places in a view.
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_().transpose(1, 2) for s in shapes]


def with_gradients(attended, inputs):
    upstream = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1))
    return [attended, *torch.autograd.grad(attended, inputs, upstream.to(attended.dtype))]


def assert_same(found, wanted, dtype):
    """Within the dtype's tolerance of the largest number, or of 1."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        difference, size = (ours.float() - theirs.float()).abs().max(), theirs.float().abs().max()
        assert difference <= TOLERANCE[dtype] * size.clamp(min=1)


@pytest.fixture
def taken(monkeypatch):
    """How often each way was taken."""
    counts = dict.fromkeys(("_varlen", "_flex", "_row_by_row"), 0)

    def count(name):
        function = getattr(packed_rows, name)

        def counted(*arguments):
            counts[name] += 1
            return function(*arguments)

        monkeypatch.setattr(packed_rows, name, counted)

    for name in counts:
        count(name)
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_outputs_and_gradients_are_those_of_a_call_a_row(dtype, window, kv_heads):
    inputs, rows = qkv(dtype, kv_heads), PackedRows(LENGTHS, torch.device("cpu"))
    found = with_gradients(packed_rows._varlen(*inputs, rows, 0.3, window), inputs)
    wanted = with_gradients(packed_rows._row_by_row(*inputs, rows, 0.3, window, None, 0.0), inputs)
    assert_same(found, wanted, dtype)


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (33,)])
def test_rows_of_one_position_and_a_single_row(lengths):
    inputs, rows = qkv(torch.float32, lengths=lengths), PackedRows(lengths, torch.device("cpu"))
    found = with_gradients(packed_rows._varlen(*inputs, rows, None, None), inputs)
    wanted = with_gradients(packed_rows._row_by_row(*inputs, rows, None, None, None, 0.0), inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "dtype", "asked"),
    [
        ("_varlen", torch.bfloat16, {}),
        ("_varlen", torch.bfloat16, {"window": 7}),
        ("_varlen", torch.float16, {}),
        ("_row_by_row", torch.float32, {}),
        ("_row_by_row", torch.bfloat16, {"dropout": 0.1}),
        ("_row_by_row", torch.float32, {"dropout": 0.1, "softcap": 5.0}),
    ],
)
def test_what_is_asked_decides_the_way(taken, way, dtype, asked):
    PackedRows(LENGTHS, torch.device("cpu")).attend(*qkv(dtype), **asked)
    assert {name for name, times in taken.items() if times} == {way}


@pytest.mark.parametrize("head_dim", [12, 264])
def test_heads_of_a_width_that_the_kernel_refuses_take_a_call_a_row(taken, head_dim):
    """It wants a multiple of 8, at most 256."""
    PackedRows(LENGTHS, torch.device("cpu")).attend(*qkv(torch.bfloat16, head_dim=head_dim))
    assert taken["_row_by_row"] == 1


@pytest.mark.parametrize("has", [(), ("scale",)])
def test_a_pytorch_without_the_operator_or_without_windows_takes_a_call_a_row(taken, monkeypatch, has):
    monkeypatch.setattr(packed_rows, "_VARLEN_ARGUMENTS", frozenset(has))
    PackedRows(LENGTHS, torch.device("cpu")).attend(*qkv(torch.bfloat16))
    assert taken["_row_by_row"] == 1


def test_what_a_teacher_asked_for_first_a_student_takes_its_gradient_with():
    batch, (q, k, v) = joined([(torch.arange(n), torch.arange(n)) for n in LENGTHS]), qkv(torch.bfloat16)
    with torch.inference_mode():
        batch.attention()["mask"].attend(q, k, v)
    batch.attention()["mask"].attend(q, k, v).sum().backward()


def test_a_model_with_windows_is_as_near_to_float32_as_by_a_call_a_row(tmp_path, taken, monkeypatch):
    folder = str(write_architecture(tmp_path / "model", "gemma3"))
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": folder})
    checkpoint = models.open_checkpoint("model", component, None)
    batch = joined([(torch.arange(3, 3 + n), torch.arange(3, 3 + n)) for n in (4, 21, 7)])

    def gradient(dtype):
        model = models.checked_on_meta("model", component, checkpoint, dtype)
        models.load_weights(model, checkpoint, torch.device("cpu"))
        model(batch.tokens, **batch.attention()).float().logsumexp(-1).sum().backward()
        return torch.cat([p.grad.float().flatten() for p in model.parameters()])

    exact = gradient(torch.float32)
    assert not taken["_varlen"]
    found = gradient(torch.bfloat16)
    assert taken["_varlen"] == taken["_row_by_row"] > 1
    monkeypatch.setattr(packed_rows, "_VARLEN_ARGUMENTS", frozenset())
    by_row = gradient(torch.bfloat16)
    assert taken["_row_by_row"] == 2 * taken["_varlen"]
    assert (found - exact).norm() < 1.1 * (by_row - exact).norm() < 0.1 * exact.norm()


def test_without_packed_rows_keys_are_not_copied_and_the_gradient_is_the_same(tmp_path, monkeypatch):
    folder = str(write_architecture(tmp_path / "model", "llama3"))
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": folder})
    checkpoint = models.open_checkpoint("model", component, None)
    model = models.checked_on_meta("model", component, checkpoint, torch.float32)
    models.load_weights(model, checkpoint, torch.device("cpu"))
    copies = []
    monkeypatch.setattr(
        attention, "copied_for_queries", lambda *x, copy=copied_for_queries: copies.append(1) or copy(*x)
    )

    def gradient():
        model.zero_grad()
        model(torch.arange(3, 20)[None]).logsumexp(-1).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    found = gradient()
    assert not copies
    monkeypatch.setattr(torch.Tensor, "is_cuda", False)
    wanted = gradient()
    assert len(copies) == 2 * len(model.layers)
    assert (found - wanted).norm() / wanted.norm() < 1e-5
