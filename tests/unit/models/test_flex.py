"""Capped scores on CUDA: flex attention, traced as there, then computed by PyTorch's formulas in place of Triton."""

import functools

import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf
from stand_in_cuda import cuda_branches
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention

from distill_tune import models
from distill_tune.data.batch import joined
from distill_tune.models import packed_rows
from distill_tune.models.packed_rows import PackedRows


@pytest.fixture(autouse=True)
def _traced_on_cuda(monkeypatch):
    """What is traced runs anywhere, but for a line that refuses gradients on a CPU."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    packed_rows._compiled_flex_attention.cache_clear()
    compiled = packed_rows._compiled_flex_attention
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
    with cuda_branches():
        yield
    compiled.cache_clear()
    torch._dynamo.reset()


def with_gradients(attended, inputs):
    upstream = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1))
    return [attended, *torch.autograd.grad(attended, inputs, upstream.to(attended.dtype))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_capped_scores_have_the_outputs_and_gradients_of_a_call_a_row(dtype, tolerance):
    """One traced function serves other lengths, windows, scales and caps, as of a teacher and its student."""
    generator = torch.Generator().manual_seed(0)
    asked = [((5, 1, 40), 7, 0.3, 2.0), ((9, 8), None, 0.2, 5.0)]
    for lengths, window, scale, softcap in asked if dtype == torch.float32 else asked[:1]:
        shapes = [(1, heads, sum(lengths), 16) for heads in (4, 2, 2)]
        inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        rows = PackedRows(lengths, torch.device("cpu"))
        found = with_gradients(rows.attend(*inputs, scale=scale, window=window, softcap=softcap), inputs)
        exact = [x.detach().float().requires_grad_() for x in inputs]
        wanted = with_gradients(packed_rows._row_by_row(*exact, rows, scale, window, softcap, 0.0), exact)
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.dtype == dtype
            assert (ours.float() - theirs).norm() <= tolerance * theirs.norm()


def test_teacher_student_and_validation_on_short_and_long_batches_are_all_compiled(monkeypatch):
    """Beyond the limit attention would be computed over all pairs; a batch of one block of keys is compiled apart."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    generator = torch.Generator().manual_seed(0)

    def attend_to(batch, head_dim):
        shapes = [(1, heads, sum(batch), head_dim) for heads in (2, 1, 1)]
        inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        PackedRows(batch, torch.device("cpu")).attend(*inputs, scale=0.2, window=7, softcap=50.0)

    counters.clear()
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=8, fail_on_recompile_limit_hit=True):
        for batch in ((5, 40), (100, 60), (9, 8), (200,), (128,), (30, 1, 1)):
            with torch.inference_mode():
                attend_to(batch, head_dim=32)
            attend_to(batch, head_dim=16)
            with torch.no_grad():
                attend_to(batch, head_dim=16)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2] > 8 and graphs[3:] == [graphs[2]] * 3


def test_a_model_of_capped_scores_has_the_gradient_of_a_call_a_row(tmp_path, monkeypatch):
    """Gemma 2, student after teacher: one of its layers has a window."""
    folder = str(write_architecture(tmp_path / "model", "gemma2", num_hidden_layers=2))
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": folder})
    checkpoint = models.open_checkpoint("model", component, None)
    model = models.checked_on_meta("model", component, checkpoint, torch.float32)
    models.load_weights(model, checkpoint, torch.device("cpu"))

    def gradient():
        batch = joined([(torch.arange(3, 3 + n), torch.arange(3, 3 + n)) for n in (4, 21, 7)])
        with torch.inference_mode():
            model(batch.tokens, **batch.attention())
        model.zero_grad()
        model(batch.tokens, **batch.attention()).logsumexp(-1).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    # Without the tracing, which takes its time.
    monkeypatch.setattr(packed_rows, "_compiled_flex_attention", lambda: flex_attention.flex_attention)
    taken = []
    monkeypatch.setattr(packed_rows, "_flex", lambda *given, flex=packed_rows._flex: taken.append(1) or flex(*given))
    found = gradient()
    assert len(taken) == 2 * len(model.layers)
    monkeypatch.setattr(packed_rows, "_flex", lambda _, *given: packed_rows._row_by_row(*given, 0.0))
    wanted = gradient()
    assert (found - wanted).norm() / wanted.norm() < 1e-5
