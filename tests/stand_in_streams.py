"""CUDA's streams and events on a CPU: work on a side stream waits as long as it may, and who waits for whom is checked.

The current stream's work is done at once. A copy on another stream is done when something waits for an event behind
it, so that work that should have waited and did not finds the old numbers. What that cannot show, a copy into what
earlier work still reads, is found by vector clocks: of two accesses to one memory from two streams, one of them a
write, the later one's stream must have waited for an event after the earlier one. Making a tensor counts as a write:
its memory may be what earlier work on that stream has just given back.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from stand_in_cuda import OnCPU
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Event:
    def __init__(self, stream: "Stream") -> None:
        self.stream, self.seen, self.place = stream, dict(stream.seen), stream.issued


class Stream:
    """
    Attributes:
        seen: of each stream, how many of its accesses are over before what this one does next.
        issued: how much work was put into ``waiting`` so far.
    """

    def __init__(self, is_main: bool = False) -> None:
        self.is_main, self.issued = is_main, 0
        self.seen: dict[Stream, int] = {}
        self.waiting: list[tuple[int, Callable[[], Any]]] = []

    def record_event(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        for stream, number in event.seen.items():
            self.seen[stream] = max(self.seen.get(stream, 0), number)
        if self.is_main:
            while event.stream.waiting and event.stream.waiting[0][0] <= event.place:
                event.stream.waiting.pop(0)[1]()

    def synchronize(self) -> None:
        """The host waits, of which PyTorch's writers of checkpoints make sure."""
        while self.waiting:
            self.waiting.pop(0)[1]()

    def put(self, work: Callable[[], Any]) -> None:
        self.issued += 1
        self.waiting.append((self.issued, work))


class Device(OnCPU):
    """A device with streams.

    Attributes:
        copied: how many copies were put on a side stream.
        unpinned: how many of them from memory that is not pinned, for which the host would wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.main = self.current = Stream(is_main=True)
        self.copied = self.unpinned = 0
        self._accesses: dict[int, list[tuple[Stream, int, bool]]] = {}

    @contextlib.contextmanager
    def running(self, patch: pytest.MonkeyPatch) -> Iterator["Device"]:
        patch.setattr(torch.cuda, "Stream", lambda device=None: Stream())
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        patch.setattr(torch.cuda, "stream", self._on)
        with self, _Accesses(self):
            yield self

    def made(self, tensor: torch.Tensor) -> None:
        self._accesses[_address(tensor)] = []
        self.access(tensor, writes=True)

    def access(self, tensor: torch.Tensor, writes: bool) -> None:
        """
        Raises:
            AssertionError: another stream's access to this memory may not be over.
        """
        accesses = self._accesses.get(_address(tensor))
        if accesses is None:  # the host's
            return
        for stream, number, wrote in accesses:
            is_over = stream is self.current or self.current.seen.get(stream, 0) >= number
            assert is_over or not (writes or wrote), "another stream uses this memory, and was not waited for"
        number = self.current.seen.get(self.current, 0) + 1
        self.current.seen[self.current] = number
        accesses.append((self.current, number, writes))

    def put_copy(self, target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        self.copied += 1
        self.unpinned += _address(source) not in self.pinned
        # By NumPy, for an operator would be taken for the current stream's.
        into, values = target.view(torch.uint8).numpy(), source.view(torch.uint8).numpy()
        self.current.put(functools.partial(_copy, into, values))
        return target

    @contextlib.contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class _Accesses(TorchDispatchMode):
    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if argument.alias_info is None or writes:  # else a view
                for tensor in (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)):
                    self._device.access(tensor, writes)
        if self._device.current.is_main:
            return func(*args, **kwargs)
        assert func is torch.ops.aten.copy_.default, f"{func} on a side stream: has no stand-in"
        return self._device.put_copy(*args[:2])


def _copy(into: Any, values: Any) -> None:
    into[...] = values


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
