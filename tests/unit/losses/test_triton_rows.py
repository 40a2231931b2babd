"""The CUDA kernel against the plain path; without a GPU Triton's interpreter runs it (see conftest.py)."""

import os
import subprocess
import sys

import pytest
import torch

from distill_tune.losses import CrossEntropy, ForwardKL
from distill_tune.losses.rows import Mixture
from distill_tune.losses.rows import losses_and_gradient as plain

pytest.importorskip("triton", reason="Triton has no build for this platform")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernel(monkeypatch):
    from distill_tune.losses import triton_rows

    monkeypatch.setattr(triton_rows, "_BLOCK", 32)  # several blocks, and a rest
    return triton_rows.losses_and_gradient


def logits(rows=5, v=101, v_t=101, scale=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, size, generator=generator) * scale for size in (v, v_t))
    targets = torch.randint(min(v, v_t), (rows,), generator=generator)
    return student.to(DEVICE, dtype), targets.to(DEVICE), teacher.to(DEVICE, dtype)


def assert_same(kernel, student, targets, teacher, atol=1e-6, **settings):
    of_mixture = {name: value for name, value in settings.items() if name not in ("teacher_softcap", "kd_weight")}
    mixture = Mixture(
        cross_entropy=CrossEntropy(),
        divergence=ForwardKL(),
        teachers=[(1.0, settings["teacher_softcap"])],
        **of_mixture,
    )
    wanted = student.clone().cpu()
    ce, kd, _ = plain(mixture, wanted, targets.cpu(), [] if teacher is None else [teacher.clone().cpu()])
    found = student.clone()
    ce_rows, kd_rows = kernel(found, targets, teacher, found, **settings | {"kd_weight": mixture.kd_weight})
    torch.testing.assert_close(ce_rows.sum().cpu(), ce, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kd_rows.sum().cpu(), kd, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-5, atol=atol)


SETTINGS = {
    "kd_ratio": 0.3,
    "kd_weight": 0.3,
    "temperature": 1.0,
    "common_vocab_size": None,
    "softcap": None,
    "teacher_softcap": None,
}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kd_ratio", [0.3, 1.0])
@pytest.mark.parametrize(("softcap", "teacher_softcap"), [(None, None), (5.0, None), (None, 5.0), (5.0, 30.0)])
def test_it_is_the_plain_path(kernel, kd_ratio, temperature, softcap, teacher_softcap):
    changed = {"kd_ratio": kd_ratio, "temperature": temperature, "softcap": softcap, "teacher_softcap": teacher_softcap}
    assert_same(kernel, *logits(), **(SETTINGS | changed))


@pytest.mark.parametrize(("v", "v_t"), [(101, 110), (110, 101), (64, 64), (7, 7)])
def test_vocabularies_of_any_size_that_differ_by_padding(kernel, v, v_t):
    assert_same(kernel, *logits(v=v, v_t=v_t), **(SETTINGS | {"common_vocab_size": min(v, v_t)}))


def test_cross_entropy_alone(kernel):
    student, targets, _ = logits()
    assert_same(kernel, student, targets, None, **(SETTINGS | {"kd_ratio": 0.0}))


def test_excluded_tokens_and_extreme_logits(kernel):
    student, targets, teacher = logits(scale=1e4)
    teacher[:, 40:] = -torch.inf
    assert_same(kernel, student, targets % 40, teacher, **SETTINGS)
    student[:, 60:] = -torch.inf
    assert_same(kernel, student, targets % 40, teacher, **SETTINGS)
    teacher[:, :33] = -torch.inf  # nothing in the first block
    assert_same(kernel, student, targets % 40, teacher, **SETTINGS)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_tokens_that_the_teacher_excludes_are_left_out_as_in_float64(kernel, temperature):
    student, targets, teacher = logits()
    teacher[:, 40:] = -torch.inf
    settings = SETTINGS | {"temperature": temperature, "kd_weight": 0.3 * temperature**2}
    found = torch.empty_like(student)
    ce, kd = kernel(student, targets, teacher, found, **settings)
    exact = student.double().requires_grad_()
    q, p = (exact / temperature).log_softmax(-1)[:, :40], (teacher[:, :40].double() / temperature).log_softmax(-1)
    wanted_ce = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    wanted_kd = (p.exp() * (p - q)).sum(-1)
    (wanted,) = torch.autograd.grad((0.7 * wanted_ce + settings["kd_weight"] * wanted_kd).sum(), exact)
    torch.testing.assert_close(ce.double(), wanted_ce.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kd.double(), wanted_kd.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("which", ["student", "teacher", "gradient", "all"])
def test_logits_whose_columns_lie_whole(kernel, which):
    def laid(name, values):
        return values.T.contiguous().T if which in (name, "all") else values

    student, targets, teacher = logits()
    wanted, found = torch.empty_like(student), laid("gradient", torch.zeros_like(student))
    expected = kernel(student, targets, teacher, wanted, **SETTINGS)
    student = laid("student", student)
    of_rows = kernel(student, targets, laid("teacher", teacher), found, **SETTINGS)
    assert torch.equal(found, wanted)
    assert all(map(torch.equal, of_rows, expected))
    kernel(student, targets, teacher, student, **SETTINGS)  # in place
    assert torch.equal(student, wanted)


@pytest.mark.parametrize(("v", "v_t", "common"), [(101, 90, None), (101, 90, 95), (90, 101, 95)])
def test_fewer_tokens_than_are_compared_are_refused(kernel, v, v_t, common):
    student, targets, teacher = logits(v=v, v_t=v_t)
    told = f"{common or v} tokens are to be compared, the logits are of {v} and {v_t}"
    with pytest.raises(ValueError, match=told):
        kernel(student, targets, teacher, student, **(SETTINGS | {"common_vocab_size": common}))


def test_agreement_is_exactly_nothing(kernel):
    student, targets, _ = logits(scale=20)
    out = torch.empty_like(student)
    _, kd = kernel(student, targets, student, out, **(SETTINGS | {"kd_ratio": 1.0, "kd_weight": 1.0}))
    assert kd.abs().max() < 1e-6
    assert out.abs().max() < 1e-6


def test_half_precision_is_computed_in_float32(kernel):
    student, targets, teacher = logits(dtype=torch.bfloat16)
    gradient = torch.empty(student.shape, dtype=torch.float32, device=DEVICE)
    ce, kd = kernel(student, targets, teacher, gradient, **SETTINGS)
    exact = torch.empty_like(gradient)
    ce_exact, kd_exact = kernel(student.float(), targets, teacher.float(), exact, **SETTINGS)
    assert torch.equal(ce, ce_exact)
    assert torch.equal(kd, kd_exact)
    assert torch.equal(gradient, exact)


def test_it_compiles_for_real_hardware():
    """Down to machine code, which needs no GPU; in a process of its own, whose Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sizes = [*map(int, done.stdout.split())]
    assert len(sizes) == 6 and min(sizes) > 10_000


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill_tune.losses.triton_rows import _BLOCK, _losses_and_gradient as kernel

pointers = {"student": "*bf16", "teacher": "*bf16", "out": "*bf16", "targets": "*i64", "ce": "*fp32", "kd": "*fp32"}
integers = ["student_stride", "teacher_stride", "out_stride", "v", "common_v"]
for option in ("", "SHARED", "CAPPED"):
    constants = {
        "HAS_CE": True,
        "HAS_KD": True,
        "SHARED": option == "SHARED",
        "STUDENT_CAPPED": option == "CAPPED",
        "TEACHER_CAPPED": option == "CAPPED",
        "BLOCK": _BLOCK,
    }
    signature = {name: "fp32" for name in kernel.arg_names} | {name: "i32" for name in integers} | pointers
    signature |= {name: "constexpr" for name in constants}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    for capability in (80, 90):
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
        print(len(compiled.asm["cubin"]))
"""
