"""The head as CUDA runs it, on the CPU: products into float32 by a stand-in, the kernel in Triton's interpreter."""

import pytest
import torch
from stand_in_cuda import cuda_branches

from distill_tune.losses import (
    CrossEntropy,
    ForwardKL,
    LinearProjection,
    SampledTokens,
    TopTokens,
    distillation_loss,
    head,
    rows,
)
from distill_tune.losses.divergences import ReverseKL
from distill_tune.losses.rows import Mixture
from distill_tune.losses.signals import HiddenStates

pytest.importorskip("triton", reason="Triton has no build for this platform")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="beside CUDA itself Triton does not interpret")

N, D, V, V_T = 13, 24, 101, 110


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    from distill_tune.losses import triton_record, triton_rows

    for module in (triton_rows, triton_record):
        monkeypatch.setattr(module, "_BLOCK", 32)  # several blocks, and a rest
    monkeypatch.setattr(head, "CHUNK_BYTES", {"cpu": 4 * (V + V_T) * 5})  # several chunks, and a rest


@pytest.fixture
def launched(monkeypatch):
    from distill_tune.losses import triton_record, triton_rows

    calls = []
    for module in (triton_rows, triton_record):
        kernel = module.losses_and_gradient
        counted = lambda *a, _kernel=kernel, **named: calls.append(a) or _kernel(*a, **named)  # noqa: E731
        monkeypatch.setattr(module, "losses_and_gradient", counted)
    return calls


def of_top(logits, k):
    return TopTokens.of(logits, k, 2.0)


def of_drawn(logits, k):
    return SampledTokens.drawn(logits, k, 2.0, torch.Generator().manual_seed(1))


def step(dtype, weight_dtype, bias=True, softcap=None, record_of=None, **settings):
    """Loss, both sums, and the gradients of hidden states, weight and bias, all as float32."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape, scale=1.0, dtype=weight_dtype):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    hidden = values(N, D, dtype=dtype).requires_grad_()
    trained = [values(V, D, scale=0.5).requires_grad_(), *([values(V).requires_grad_()] if bias else [])]
    of_teacher = HiddenStates(values(N, 16, dtype=dtype), LinearProjection(values(V_T, 16, dtype=dtype), softcap=30.0))
    if record_of is not None:
        of_teacher = record_of(of_teacher.logits(0, N, of_teacher.memory(N))[:, :V], 12)
    targets = torch.randint(V, (N,), generator=generator)
    sums = distillation_loss(
        hidden,
        LinearProjection(*trained, softcap=softcap),
        targets,
        of_teacher,
        common_vocab_size=V,
        **settings,
    )
    sums.loss.backward()
    return [x.detach().float() for x in (sums.loss, sums.ce, sums.kd, hidden.grad, *(p.grad for p in trained))]


def assert_near(found, wanted, tolerance):
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize(
    ("dtype", "weight_dtype", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 1e-2),
        (torch.bfloat16, torch.float32, 1e-2),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"kd_ratio": 0.3, "temperature": 1.0},
        {"kd_ratio": 1.0, "temperature": 2.0},
        {"kd_ratio": 0.5, "temperature": 2.0, "softcap": 5.0, "bias": False},
        {"kd_ratio": 0.5, "temperature": 2.0, "record_of": of_drawn},
        {"kd_ratio": 0.5, "temperature": 2.0, "record_of": of_top, "divergence": ReverseKL()},
    ],
    ids=["both", "teacher", "capped", "drawn", "top"],
)
def test_losses_and_gradients_are_those_of_the_cpu(dtype, weight_dtype, tolerance, settings, launched):
    wanted = step(dtype, weight_dtype, **settings)
    assert not launched
    with cuda_branches():
        found = step(dtype, weight_dtype, **settings)
    assert len(launched) >= 2
    assert_near(found, wanted, tolerance)


@pytest.mark.parametrize(
    ("without", "settings"),
    [
        ("triton", {}),
        ("the usual loss", {"divergence": ReverseKL()}),
        ("the usual loss", {"divergence": ReverseKL(), "record_of": of_top, "softcap": 5.0}),
    ],
)
def test_where_there_is_no_kernel_the_plain_formulas_are_taken(without, settings, launched, monkeypatch):
    monkeypatch.setattr(rows, "_has_triton", lambda: without != "triton")
    settings = {"kd_ratio": 0.3, "temperature": 2.0, **settings}
    wanted = step(torch.bfloat16, torch.float32, **settings)
    with cuda_branches():
        found = step(torch.bfloat16, torch.float32, **settings)
    assert not launched
    assert_near(found, wanted, 1e-2)


def test_a_machine_without_triton_is_one_without_the_kernel(monkeypatch):
    rows._has_triton.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with cuda_branches():
        mixture = Mixture(0.5, 1.0, None, CrossEntropy(), ForwardKL())
        assert not rows._has_kernel(mixture, torch.zeros(2, 3))
    rows._has_triton.cache_clear()


def rows_of_a_wider_memory(logits):
    wide = torch.full((len(logits), logits.shape[1] + 7), torch.nan, dtype=logits.dtype)
    wide[:, : logits.shape[1]] = logits
    return wide[:, : logits.shape[1]]


def every_second_row(logits):
    twice = torch.full((2 * len(logits), logits.shape[1]), torch.nan, dtype=logits.dtype)
    twice[::2] = logits
    return twice[::2]


def columns_first(logits):
    return logits.T.contiguous().T


@pytest.mark.parametrize("of_student", [rows_of_a_wider_memory, every_second_row, columns_first])
@pytest.mark.parametrize("of_teacher", [rows_of_a_wider_memory, columns_first])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("v", "v_t", "common"), [(101, 101, None), (101, 110, 101), (110, 101, 97), (1, 1, None)])
def test_the_launch_walks_memory_as_it_lies(of_student, of_teacher, dtype, v, v_t, common, launched):
    """Odd sizes, rows of a larger memory, and nothing written beside them."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(5, size, generator=generator) * 3 for size in (v, v_t))
    targets = torch.randint(common or v, (5, 2), generator=generator)[:, 0]  # of a stride of its own
    mixture = Mixture(0.3, 2.0, common, CrossEntropy(), ForwardKL())
    ce, kd, wanted = rows.losses_and_gradient(mixture, student.clone(), targets, [teacher.clone()])
    laid = of_student(student)
    with cuda_branches():
        found = rows.losses_and_gradient(mixture, laid, targets, [of_teacher(teacher)], dtype)
    assert len(launched) == 1
    assert found[2].dtype == dtype
    torch.testing.assert_close(torch.stack(found[:2]), torch.stack([ce, kd]), rtol=1e-5, atol=1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found[2].float(), wanted, rtol=tolerance, atol=1e-5)
    if dtype == torch.float32:
        assert found[2] is laid
        beside = laid._base if laid._base is not None else laid
        assert beside.isnan().sum() == beside.numel() - laid.numel()
    else:
        assert torch.equal(laid, student)


def test_products_of_halves_are_float32_without_memory_of_their_own_and_of_float32_go_into_it():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, D, generator=generator), torch.randn(V, D, generator=generator)
    exact = hidden @ weight.t()
    with cuda_branches():
        for dtype in (torch.bfloat16, torch.float16):
            projection = LinearProjection(weight.to(dtype))
            assert projection.memory(5, 0, dtype) is None
            logits = projection.logits(hidden.to(dtype), None)
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, hidden.to(dtype).float() @ weight.to(dtype).float().t())
        projection = LinearProjection(weight)
        memory = projection.memory(5, 0, torch.float32)
        assert projection.logits(hidden, memory).data_ptr() == memory.data_ptr()
        torch.testing.assert_close(memory, exact)


def test_a_chunk_on_cuda_is_four_of_a_cpus(monkeypatch):
    monkeypatch.undo()
    of_row = head.chunk_bytes_per_row(128_256, 128_256, torch.bfloat16)
    cpu, cuda = (head.chunk_rows(100_000, of_row, torch.device(kind)) for kind in ("cpu", "cuda"))
    assert head.chunk_rows(100_000, of_row, torch.device("mps")) == cpu < cuda
    assert cuda * of_row <= 2**30 < 1.3 * cuda * of_row
