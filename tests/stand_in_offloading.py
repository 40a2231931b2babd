"""torchtune's activation offloading without CUDA: what it copies to the host is copied, streams are none."""

import contextlib
import types
from typing import Any

import pytest
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)

from torchtune.training import OffloadActivations, _activation_offloading


class _OnHost(torch.Tensor):
    """What was copied there; it comes back as a copy of its own."""

    def to(self, device: str, non_blocking: bool) -> torch.Tensor:  # type: ignore[override]
        assert device == "cuda" and non_blocking
        return self.as_subclass(torch.Tensor).clone()


class _Stream:
    def wait_stream(self, stream: "_Stream") -> None: ...
    def wait_event(self, event: object) -> None: ...
    def record_event(self) -> object:
        return object()


class _Torch:
    """PyTorch as torchtune's file sees it."""

    def __init__(self) -> None:
        self.copied = 0
        self.cuda = types.SimpleNamespace(
            default_stream=_Stream, Stream=_Stream, stream=lambda stream: contextlib.nullcontext()
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty_like(self, tensor: torch.Tensor, pin_memory: bool, device: str) -> torch.Tensor:
        assert pin_memory and device == "cpu"
        self.copied += 1
        return torch.empty_like(tensor).as_subclass(_OnHost)


def offloading_without_cuda(patch: pytest.MonkeyPatch) -> tuple[OffloadActivations, _Torch]:
    """torchtune's own, and what counts in ``copied`` what it sends to the host."""
    stand_in = _Torch()
    patch.setattr(_activation_offloading, "torch", stand_in)
    patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    return OffloadActivations(), stand_in
