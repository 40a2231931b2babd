"""A device that is not the CPU's, for machines without one: a run on it must put every tensor where it belongs.

Its tensors are numbers in the CPU's memory that say they lie elsewhere. An operation on tensors of both is refused, as
CUDA refuses it; what makes the CPU wait for a device is counted, with the line that asked. Numbers are right, so a run
on it can be compared with one on the CPU. What it does not stand for: CUDA's own kernels, asynchrony, streams, memory.

    echo '[["kd_single_device", "--config", "tiny"]]' | python second_device.py
"""

import contextlib
import json
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
# What these give the CPU has to know.
_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2")
_COPIES = ("aten::_to_copy", "aten::copy_")
_OURS = ("distill_tune", "recipes")

waits: list[str] = []  # what the CPU waited for, and the line of ours that asked


class SecondDeviceTensor(torch.Tensor):
    """
    Attributes:
        held: the same numbers as a tensor of the CPU.
    """

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "SecondDeviceTensor":
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=torch.device(NAME, 0), **shape)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _run(function, arguments, named or {})

    def tolist(self) -> Any:
        _count("tolist")
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self) -> str:
        return f"SecondDeviceTensor({self.held!r})"


class SecondDevice(TorchDispatchMode):
    """While it is entered, ``device="second"`` makes tensors there."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _run(function, arguments, named or {})


def _count(what: str) -> None:
    frames = [frame for frame in traceback.extract_stack() if any(f"/{part}" in frame.filename for part in _OURS)]
    where = f"{'/'.join(Path(frames[-1].filename).parts[-2:])}: {frames[-1].line}" if frames else "elsewhere"
    waits.append(f"{what}, {where}")


def _is_here(value: Any) -> bool:
    return isinstance(value, SecondDeviceTensor)


def _run(function: Any, arguments: Any, named: dict[str, Any]) -> Any:
    name, device = function._schema.name, named.get("device")
    tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, torch.Tensor)]
    comes_here = device is not None and torch.device(device).type == NAME
    if not comes_here and not any(map(_is_here, tensors)):
        return function(*arguments, **named)
    makes_new = device is not None and name.endswith("_like")  # after the shape of one of another device
    if name not in _COPIES and not makes_new and not all(_is_here(tensor) or not tensor.ndim for tensor in tensors):
        raise RuntimeError(f"{name}: tensors of {NAME} and of the CPU: {[list(tensor.shape) for tensor in tensors]}")
    if name in _WAITS:
        _count(name)
    held = {id(tensor.held): tensor for tensor in tensors if _is_here(tensor)}
    if device is not None:
        named = named | {"device": "cpu"}
    on_cpu = tree_map(lambda leaf: leaf.held if _is_here(leaf) else leaf, (arguments, named))
    found = function(*on_cpu[0], **on_cpu[1])
    if name in _COPIES and _copied(function, arguments, named, device):
        return found  # away from here
    if name == "aten::copy_":
        return arguments[0]

    def here(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return held[id(leaf)] if id(leaf) in held else SecondDeviceTensor(leaf)

    return tree_map(here, found)


def _copied(function: Any, arguments: Any, named: dict[str, Any], device: Any) -> bool:
    """Count a copy that is waited for; whether it leaves."""
    if function._schema.name == "aten::copy_":
        source, leaves = arguments[1], not _is_here(arguments[0])
        blocks = not (named.get("non_blocking") or arguments[2:] == (True,))
    else:
        source, leaves = arguments[0], device is not None and torch.device(device).type != NAME
        blocks = not named.get("non_blocking")
    if leaves:
        _count("a copy to the CPU")
    elif blocks and not _is_here(source):
        _count("a copy from the CPU that blocks")
    return leaves


class _FromNumbers(TorchFunctionMode):
    """torch.tensor with a device makes a tensor of the CPU and copies it."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function is not torch.tensor:
            return function(*arguments, **named)
        data = tree_map(lambda leaf: leaf.item() if _is_here(leaf) else leaf, arguments)
        device = named.get("device") or torch.get_default_device()
        return function(*data, **named | {"device": "cpu"}).to(device)


class _Module(_DummyBackendModule):
    """What PyTorch asks of a device's module where it copies to the CPU: all is done at once here."""

    def current_stream(self, device: Any = None) -> Any:
        return types.SimpleNamespace(synchronize=lambda: None, wait_stream=lambda stream: None)

    def stream(self, stream: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, device: Any = None) -> None:
        return None


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Once in a process: PyTorch knows one such device."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    # One thread, for the modes are the thread's.
    with SecondDevice(), _FromNumbers(), torch.autograd.set_multithreading_enabled(False):
        yield


def main() -> None:
    """Run what is asked for on standard input, a list of command lines; print what each step of each waited for."""
    from distill_tune import training
    from distill_tune.cli.main import main as distill_tune

    of_steps: list[list[str]] = []
    write = training.Metrics.write

    def write_and_count(metrics: training.Metrics, line: dict[str, Any]) -> None:
        of_steps.append(list(waits))
        write(metrics, line)
        waits.clear()

    device = patch.object(training, "find_device", lambda name: torch.device(NAME, 0))
    found = []
    with second_device(), device, patch.object(training.Metrics, "write", write_and_count):
        for arguments in json.load(sys.stdin):
            of_steps, before = [], list(sys.path)
            try:
                distill_tune(["run", *arguments])
            except BaseException:
                found.append(traceback.format_exc())
            else:
                found.append(of_steps)
            sys.path[:] = before
    print(json.dumps(found))


if __name__ == "__main__":
    main()
