"""What compile=True needs of the machine is asked for before anything is loaded."""

import pytest
import torch

from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.models import compilation


@pytest.fixture(autouse=True)
def _its_own_compiler(monkeypatch):
    monkeypatch.delenv("TORCH_COMPILE_BACKEND", raising=False)


def test_on_a_cpu_a_compiler_of_cpp_is_needed(monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(compilation, "has_triton_package", lambda: True)
    told = r"compile=True: .* needs a C\+\+ compiler, and finds none: install g"
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(UserError, match=told):
        models.check_compiler(torch.device("cpu"))
    models.check_compiler(torch.device("cuda"))
    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    models.check_compiler(torch.device("cpu"))


def test_on_cuda_triton_is_needed(monkeypatch):
    monkeypatch.setattr(compilation, "has_triton_package", lambda: False)
    with pytest.raises(UserError, match=r"compile=True: .* pip install triton"):
        models.check_compiler(torch.device("cuda"))
