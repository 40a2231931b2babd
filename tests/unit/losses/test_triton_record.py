"""The CUDA kernels for a record against the plain path; without a GPU Triton's interpreter runs them."""

import os
import subprocess
import sys

import pytest
import torch
from plain_divergences import DIVERGENCES

from distill_tune.losses import CrossEntropy, SampledTokens, TopK, TopTokens
from distill_tune.losses.rows import Mixture
from distill_tune.losses.rows import losses_and_gradient as plain

pytest.importorskip("triton", reason="Triton has no build for this platform")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
V, K = 101, 12
PLAIN = {name: pair[0] for name, pair in DIVERGENCES.items() if not isinstance(pair[0], TopK)}


@pytest.fixture
def kernel(monkeypatch):
    from distill_tune.losses import triton_record

    monkeypatch.setattr(triton_record, "_BLOCK", 32)  # several blocks, and a rest
    return triton_record.losses_and_gradient


def example(scale=3.0, rows=5):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(rows, V, generator=generator) * scale for _ in range(2))
    return student, torch.randint(V, (rows,), generator=generator), teacher


def record_of(kind, teacher, temperature):
    if kind == "sampled":
        return SampledTokens.drawn(teacher, K, temperature, torch.Generator().manual_seed(1))
    return TopTokens.of(teacher, K, temperature)


def mixture_of(kd_ratio, temperature, divergence="forward"):
    return Mixture(kd_ratio, temperature, None, CrossEntropy(), PLAIN[divergence])


def assert_same(kernel, mixture, student, targets, record, dtype=torch.float32):
    wanted = student.clone()
    ce, kd, _ = plain(mixture, wanted, targets, [record])
    logits = student.clone().to(DEVICE)
    found = logits if dtype == torch.float32 else torch.empty_like(logits, dtype=dtype)
    ce_rows, kd_rows = kernel(mixture, logits, targets.to(DEVICE), record.to(DEVICE), found)
    torch.testing.assert_close(ce_rows.sum().cpu(), ce, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kd_rows.sum().cpu(), kd, rtol=1e-5, atol=1e-5)
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-6}
    torch.testing.assert_close(found.float().cpu(), wanted, **tolerance)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.7])
@pytest.mark.parametrize("kd_ratio", [0.3, 1.0])
@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_losses_and_gradient_are_those_of_the_plain_path(kernel, kind, kd_ratio, temperature):
    student, targets, teacher = example()
    record = record_of(kind, teacher, temperature)
    assert kind == "top_k" or not record.is_token.all()  # what only fills a row is part of what is tested
    targets[0] = record.ids[0, 0]  # one target among the record's tokens
    for dtype in (torch.float32, torch.bfloat16):
        assert_same(kernel, mixture_of(kd_ratio, temperature), student, targets, record, dtype)


@pytest.mark.parametrize("divergence", PLAIN)
def test_top_tokens_have_every_divergence(kernel, divergence):
    student, targets, teacher = example()
    assert_same(kernel, mixture_of(0.5, 2.0, divergence), student, targets, record_of("top_k", teacher, 2.0))


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_a_student_that_is_sure_of_a_record_s_token_or_of_another(kernel, kind):
    student, targets, teacher = example()
    record = record_of(kind, teacher, 1.0)
    student[0, record.ids[0, 0]] = 80.0
    student[1, next(token for token in range(V) if token not in record.ids[1])] = 80.0
    targets[2] = record.ids[2, 1]
    student[2, targets[2]] = 80.0
    assert_same(kernel, mixture_of(0.5, 1.0), student, targets, record, torch.bfloat16)


def test_a_record_of_the_whole_vocabulary_leaves_no_rest(kernel):
    student, targets, teacher = example()
    assert_same(kernel, mixture_of(0.5, 2.0), student, targets, TopTokens.of(teacher, V, 2.0))


def test_logits_whose_columns_lie_whole(kernel):
    student, targets, teacher = example()
    record, mixture = record_of("sampled", teacher, 1.0), mixture_of(0.5, 1.0)
    wanted = student.clone()
    plain(mixture, wanted, targets, [record])
    found = torch.zeros_like(student).T.contiguous().T.to(DEVICE)
    kernel(mixture, student.T.contiguous().T.to(DEVICE), targets.to(DEVICE), record.to(DEVICE), found)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-6)


def test_no_rows_have_no_losses(kernel):
    student, targets, _ = example(rows=0)
    record = TopTokens(torch.zeros(0, 3, dtype=torch.int32), torch.zeros(0, 3), torch.zeros(0), 1.0, V)
    ce, kd = kernel(mixture_of(0.5, 1.0), student.to(DEVICE), targets.to(DEVICE), record.to(DEVICE), student.to(DEVICE))
    assert (len(ce), len(kd)) == (0, 0)


def test_they_compile_for_real_hardware():
    """Down to machine code, which needs no GPU; in a process of its own, whose Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) > 5_000


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from distill_tune.losses.triton_record import _BLOCK, _gradient, _sums_of_exponentials

constants = {"PLAIN": True, "BLOCK": _BLOCK}
kinds = {"v": "i32", "stride": "i32", "out_stride": "i32", "temperature": "fp32", "of_target": "fp32"}
pointers = {"targets": "*i64", "out": "*bf16"}
for kernel in (_sums_of_exponentials, _gradient):
    signature = {name: "*fp32" for name in kernel.arg_names} | kinds | pointers | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    print(len(compiled.asm["cubin"]))
"""
