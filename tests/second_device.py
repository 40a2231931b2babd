"""A device that is not the CPU's, for machines without one: a run on it must put every tensor where it belongs.

Its tensors are numbers in the CPU's memory that say they lie elsewhere. An operation on tensors of both is refused, as
CUDA refuses it; what makes the CPU wait for a device is counted, with the line that asked. Numbers are right, so a run
on it can be compared with one on the CPU. What it does not stand for: CUDA's own kernels, asynchrony, streams, memory.

    echo '[["kd_single_device", "--config", "tiny"]]' > commands.json
    python second_device.py commands.json
"""

import contextlib
import json
import os
import socket
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "second"
_PUTS = ("aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# The CPU has to know what these give: a number, or how many.
_WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# Of a CPU's tensor without dimensions elementwise operations read the number, and so do these; others refuse it.
_READ_NUMBERS = ("aten::fill", "aten::fill_", "aten::masked_fill", "aten::masked_fill_", *_PUTS)
_COPIES = ("aten::_to_copy", "aten::copy_")
_OURS = ("distill_tune", "recipes")

_NOTHING = contextlib.nullcontext()

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
        if any(isinstance(leaf, DTensor) for leaf in tree_leaves((arguments, named))):
            return NotImplemented  # what it is made of comes by next
        return _run(function, arguments, named or {})


def tree_leaves(value: Any) -> list[Any]:
    """Of lists, tuples and dicts, as operators have them; PyTorch's own takes several times as long."""
    if type(value) in (list, tuple):
        return [leaf for part in value for leaf in tree_leaves(part)]
    return tree_leaves([*value.values()]) if type(value) is dict else [value]


def tree_map(change: Callable[[Any], Any], value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)([tree_map(change, part) for part in value])
    return {key: tree_map(change, part) for key, part in value.items()} if type(value) is dict else change(value)


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
    if name not in _COPIES and not makes_new and not _can_be_mixed(function, arguments, tensors):
        raise RuntimeError(f"{name}: tensors of {NAME} and of the CPU: {[list(tensor.shape) for tensor in tensors]}")
    if _waits(function, arguments, named):
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


def _can_be_mixed(function: Any, arguments: Any, tensors: list[torch.Tensor]) -> bool:
    """Whether all are here, or what is not is a number that the operation reads."""
    others = [tensor for tensor in tensors if not _is_here(tensor)]
    if not others:
        return True
    writes = [argument.is_write for argument in function._schema.arguments]
    written = [value for value, is_written in zip(arguments, writes, strict=False) if is_written]
    reads = torch.Tag.pointwise in function.tags or function._schema.name in _READ_NUMBERS
    return reads and all(map(_is_here, written)) and not any(tensor.ndim for tensor in others)


def _waits(function: Any, arguments: Any, named: dict[str, Any]) -> bool:
    """As CUDA does."""
    name = function._schema.name
    if name == "aten::index":
        return _has_mask(arguments[1])
    if any(tag in function.tags for tag in _WAITS):
        return named.get("output_size") is None  # which repeat_interleave may be told
    if name == "aten::where":  # copies a number of the CPU
        return not all(map(_is_here, arguments))
    if name in ("aten::masked_fill", "aten::masked_fill_"):
        return _is_here(arguments[2])  # a number is what its kernel takes
    if name in _PUTS:
        is_number = not _is_here(arguments[2])
        fills = is_number and _has_mask(arguments[1]) and not (len(arguments) > 3 and arguments[3])
        return not fills and (is_number or _has_mask(arguments[1]))
    return False


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in tree_leaves(indices))


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
    """torch.tensor with a device makes a tensor of the CPU and copies it; a number that is put into one stays there."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if function is torch.Tensor.__setitem__ and isinstance(arguments[2], (int, float)) and _is_here(arguments[0]):
            arguments = (*arguments[:2], torch.tensor(arguments[2], dtype=arguments[0].dtype))
        if function is not torch.tensor:
            return function(*arguments, **named)
        data = tree_map(lambda leaf: leaf.item() if _is_here(leaf) else leaf, arguments)
        device = named.get("device") or torch.get_default_device()
        return function(*data, **named | {"device": "cpu"}).to(device)


class _Stream:
    """All is done at once here, and the CPU would wait where it asks for that."""

    def __init__(self, *arguments: Any, **named: Any) -> None: ...
    def wait_stream(self, stream: "_Stream") -> None: ...
    def wait_event(self, event: "_Event") -> None: ...
    def record_event(self, event: Any = None) -> "_Event":
        return _Event()

    def synchronize(self) -> None:
        _count("a stream")


class _Event:
    def __init__(self, *arguments: Any, **named: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None:
        _count("an event")


class _Module(_DummyBackendModule):
    """What PyTorch asks of a device's module where it copies and where it shards."""

    Stream, Event = _Stream, _Event

    def current_stream(self, device: Any = None) -> Any:
        # Of a copy to the CPU, which is counted as such.
        return types.SimpleNamespace(
            synchronize=lambda: None,
            wait_stream=lambda s: None,
            wait_event=lambda e: None,
            record_event=lambda event=None: _Event(),
        )

    def stream(self, stream: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def synchronize(self, device: Any = None) -> None:
        return None


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Once in a process: PyTorch knows one such device."""
    _setup_privateuseone_for_python_backend(NAME, _Module())
    # FSDP gives memory back by its storage, which a tensor that holds another has not.
    kept = patch.multiple(_fsdp_param, free_storage=lambda tensor: None, alloc_storage=lambda tensor: None)
    # One thread, for the modes are the thread's.
    with SecondDevice(), _FromNumbers(), torch.autograd.set_multithreading_enabled(False), kept:
        yield


def _of_one_rank() -> dict[str, str]:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def main() -> None:
    """Run what a file asks for, a list of command lines; print what each step of each waited for."""
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # its threads would not know the device
    from distill_tune import training
    from distill_tune.cli.main import main as distill_tune

    of_steps: list[list[str]] = []
    write = training.Metrics.write

    def write_and_count(metrics: training.Metrics, line: dict[str, Any]) -> None:
        of_steps.append(list(waits))
        write(metrics, line)
        waits.clear()

    def find_device(name: str) -> torch.device:
        return torch.device(NAME, 0)

    device = patch.multiple(training, find_device=find_device)
    of_rank = patch.object(training.distributed, "find_device", find_device)
    found = []
    # A view of a tensor that is wrapped, as all are here, cannot be taken in inference mode.
    no_inference = patch.object(torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else _NOTHING)
    with second_device(), device, of_rank, no_inference, patch.object(training.Metrics, "write", write_and_count):
        for arguments in json.loads(Path(sys.argv[1]).read_text()):
            of_steps, before = [], list(sys.path)
            try:
                with patch.dict(os.environ, _of_one_rank() if arguments[0] == "kd_distributed" else {}):
                    distill_tune(["run", *arguments])
            except BaseException:
                found.append(traceback.format_exc())
            else:
                found.append(of_steps)
            sys.path[:] = before
    print(json.dumps(found))


if __name__ == "__main__":
    main()
