"""A teacher whose layers lie in host memory and visit the device one after another."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from distill_tune.errors import UserError


class StreamedLayers:
    """Holds layers' weights on the host; each is copied to the device before it runs, while the one before it runs.

    1. A layer's parameters become views of one flat host tensor (pinned, where the device is CUDA).
    2. The device has memory for two layers. Before a layer runs, the next one's copy into the other half begins, on a
       stream of its own, once the layer that used that half is through.
    3. The layer waits for its own copy, points its parameters at it, and runs.

    Args:
        layers: run in this order, as a decoder's; all on the host, frozen.
        device: where they run.

    Raises:
        UserError: the weights are of several kinds, as quantised ones are.
    """

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        kinds = {(type(p.data), p.dtype) for layer in layers for p in layer.parameters()}
        if len(kinds) > 1 or any(kind is not torch.Tensor for kind, _ in kinds):
            raise UserError("teacher_offload=True: streams plain weights alone; leave teacher_quantizer out, or QLoRA")
        self._device = device
        self._parameters = [list(layer.parameters()) for layer in layers]
        self._host = [_flat(parameters, pin=device.type == "cuda") for parameters in self._parameters]
        most = max(flat.numel() for flat in self._host)
        self._halves = [torch.empty(most, dtype=self._host[0].dtype, device=device) for _ in range(2)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: list[torch.cuda.Event | None] = [None, None]
        # The halves' memory may be what work that is still under way on this stream has given back.
        now = torch.cuda.current_stream(device).record_event() if self._stream is not None else None
        self._free: list[torch.cuda.Event | None] = [now, now]
        self._in_half: list[int | None] = [None, None]
        for at, layer in enumerate(layers):
            layer.register_forward_pre_hook(functools.partial(self._before, at))
            layer.register_forward_hook(functools.partial(self._after, at))

    @torch.compiler.disable  # of each layer another; a compiled layer's hooks would be compiled with it
    def _before(self, at: int, module: nn.Module, arguments: Any) -> None:
        self._copy(at)
        following = (at + 1) % len(self._host)
        if following % 2 != at % 2:  # else the first layer, which would go where this one lies
            self._copy(following)
        if (copied := self._copied[at % 2]) is not None:
            torch.cuda.current_stream(self._device).wait_event(copied)
        _point_at(self._halves[at % 2], self._parameters[at])

    @torch.compiler.disable
    def _after(self, at: int, module: nn.Module, arguments: Any, output: Any) -> None:
        _point_at(self._host[at], self._parameters[at])
        if self._stream is not None:
            self._free[at % 2] = torch.cuda.current_stream(self._device).record_event()

    def _copy(self, at: int) -> None:
        half = at % 2
        if self._in_half[half] == at:
            return
        self._in_half[half] = at
        target = self._halves[half][: self._host[at].numel()]
        if self._stream is None:
            target.copy_(self._host[at])
            return
        with torch.cuda.stream(self._stream):
            if (free := self._free[half]) is not None:
                self._stream.wait_event(free)
            target.copy_(self._host[at], non_blocking=True)
            self._copied[half] = self._stream.record_event()


def _flat(parameters: Sequence[nn.Parameter], pin: bool) -> torch.Tensor:
    """One tensor with the values of all, of which they become views."""
    size = sum(p.numel() for p in parameters)
    flat = torch.empty(size, dtype=parameters[0].dtype, pin_memory=pin)
    torch.cat([p.data.flatten() for p in parameters], out=flat)
    _point_at(flat, parameters)
    return flat


def _point_at(flat: torch.Tensor, parameters: Sequence[nn.Parameter]) -> None:
    start = 0
    for parameter in parameters:
        stop = start + parameter.numel()
        parameter.data = flat[start:stop].view(parameter.shape)
        start = stop


def move_all_but_layers(model: Any, device: torch.device) -> None:
    """Embeddings, final norm and output layer to the device; the layers stay where they are."""
    for name, module in model.named_children():
        if name != "layers":
            module.to(device)
    for layer in model.layers:
        for module in layer.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
