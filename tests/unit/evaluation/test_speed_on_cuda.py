"""What is timed on a GPU, whose work goes on after a call returns: what is waited for, and in which numbers."""

import time

import pytest
import torch
from stand_in_cuda import OnCPU, one_gpu
from tiny import model_arguments

from distill_tune.cli.compare import dtype_for
from distill_tune.evaluation.scoring import precise
from distill_tune.evaluation.speed import loaded_and_timed
from distill_tune.teachers import LiveTeacher

from torchtune.models.llama3_2 import llama3_2


def test_the_clock_is_read_only_when_the_gpu_is_through(monkeypatch):
    """The first pass, which is slower, would else be counted, and the last one not."""
    calls, clock = one_gpu(monkeypatch), time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: calls.append("clock") or clock())
    with OnCPU():
        model = llama3_2(**model_arguments())
        loaded_and_timed(lambda: LiveTeacher(model), 16, [[1, 5, 6, 7, 8]], torch.device("cuda"))
    timed = [call for call in calls if call in ("clock", "synchronize")]
    first = timed.index("clock") - 1
    assert timed[first : first + 20] == ["synchronize", "clock", "synchronize", "clock"] * 5


@pytest.mark.parametrize(
    ("device", "has_bf16", "dtype"),
    [("cuda", True, torch.bfloat16), ("cuda", False, torch.float32), ("cpu", True, torch.float32)],
)
def test_models_are_compared_in_bf16_where_the_gpu_computes_in_it(monkeypatch, device, has_bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert dtype_for(torch.device(device)) == dtype


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float64), ("cuda", torch.float64), ("mps", torch.float32)])
def test_probabilities_are_in_float64_but_on_mps_which_has_none(device, dtype):
    assert precise(torch.device(device)) == dtype
