"""Device and dtype, with errors that name the config's key."""

import os

import torch

from distill_tune.errors import UserError
from distill_tune.launch import num_processes

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def find_device(name: str) -> torch.device:
    """The device that a config names; ``auto`` is CUDA, else MPS, else the CPU. Of CUDA it has a number.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device={name}: no such device; name cpu, cuda, cuda:N, mps or auto") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device={name}: PyTorch sees no CUDA device here; take device=cpu, or install a CUDA build of it"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name}: there are {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device={name}: there is no MPS device here; take device=cpu")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)  # without a number it cannot be set
        torch.cuda.set_device(device)
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that a model computes in, and holds what does not train.

    Raises:
        UserError: the device cannot compute in it.
    """
    if name == "bf16" and lacks_bf16(device):
        raise UserError(f"dtype=bf16: {torch.cuda.get_device_name(device)} has no bf16; take dtype=fp32")
    return _DTYPES[name]


def lacks_bf16(device: torch.device) -> bool:
    """Whether it is a GPU that emulates bf16 at most."""
    return device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)


def describe_device(device: torch.device) -> tuple[str, int]:
    """What it is, as its driver or the system calls it, and the bytes of memory that it has."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    return device.type, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def dtype_name(dtype: torch.dtype) -> str:
    """As a config says it."""
    names = {value: name for name, value in _DTYPES.items()}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def require_one_process() -> None:
    """
    Raises:
        UserError: torchrun started several.
    """
    if (count := num_processes()) > 1:
        raise UserError(
            f"this recipe runs on one device, but {count} processes were started; take kd_distributed, "
            "which runs every config of this one on several"
        )
