"""Hardware that is not what a config asks for; what PyTorch answers on such a machine is put in its mouth."""

import pytest
import torch

from distill_tune.errors import UserError
from distill_tune.training import find_device, find_dtype, init_distributed


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with a single GPU of a kind that has no bf16; torch.cuda.set_device checks its argument."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda number: None, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")


def test_a_dtype_that_the_gpu_lacks_is_told(one_gpu):
    with pytest.raises(UserError, match="dtype=bf16: Tesla T4 has no bf16; take dtype=fp32"):
        find_dtype("bf16", torch.device("cuda"))
    assert find_dtype("fp32", torch.device("cuda")) == torch.float32


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
def test_the_gpu_is_set_by_its_number(one_gpu, name):
    assert find_device(name) == torch.device("cuda:0")


def test_a_gpu_that_is_not_there_is_told(one_gpu):
    with pytest.raises(UserError, match="device=cuda:1: there are 1 CUDA devices, numbered from 0"):
        find_device("cuda:1")


def test_more_ranks_than_gpus_are_told(one_gpu, monkeypatch):
    group = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in group.items():  # all that it sets, so that nothing of it is left for what is started later
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="has 1 GPU, and more processes were started there; set --nproc_per_node 1"):
        init_distributed("cuda")


def test_a_device_that_there_is_none_of_is_told():
    with pytest.raises(UserError, match="device=nonsense: no such device; name cpu, cuda"):
        find_device("nonsense")
