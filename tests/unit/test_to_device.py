"""How what is made on the CPU gets to the device."""

import torch
from stand_in_cuda import OnCPU

from distill_tune.to_device import to_device


def test_what_goes_to_cuda_goes_from_pinned_memory():
    numbers = torch.arange(3)
    with OnCPU() as on_cpu:
        assert to_device(numbers, torch.device("cpu")).tolist() == [0, 1, 2]
        assert not on_cpu.pinned
        assert to_device(numbers, torch.device("cuda")).tolist() == [0, 1, 2]
        assert on_cpu.pinned == {numbers.untyped_storage().data_ptr()}
