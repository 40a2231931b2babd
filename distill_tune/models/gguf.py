"""GGUF files, llama.cpp's, as checkpoints of a frozen model: their weights, and linear layers over them.

The numbers of the block formats are those of ggml: 32 weights share a float16 scale (and minimum), low nibbles first.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from distill_tune.errors import UserError
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.gguf_config import gguf_config, gguf_field, gguf_reader
from distill_tune.models.gguf_names import OF_ROPE, adds_one_to, hf_name, in_halves, turned_heads
from distill_tune.models.hf_names import Weights

_ADDED = (3, 4)  # llama.cpp's types of tokens: control, user-defined
_BLOCK = 32  # weights
_BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20}


@dataclasses.dataclass(frozen=True)
class GGUFCheckpoint(Checkpoint):
    """A GGUF file; ``folder`` is the file itself."""

    @classmethod
    def open(cls, key: str, path: Path) -> "GGUFCheckpoint":
        """
        Raises:
            UserError: as :func:`gguf_config`.
        """
        return cls(key, path, (path,), None, gguf_config(path))

    def headers(self) -> Weights:
        return {
            name: torch.empty([int(size) for size in reversed(tensor.shape)], device="meta")
            for name, tensor in self._tensors()
        }

    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and weight, one after another, as float32."""
        from gguf import quants

        for name, tensor in self._tensors():
            values = torch.tensor(quants.dequantize(tensor.data, tensor.tensor_type))
            yield name, self._in_hf_order(name, values - 1 if adds_one_to(name, self._architecture) else values)

    def blocks(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Name, format and raw blocks ``[out, bytes]``, uint8, of the weights that :class:`BlockLinear` can hold."""
        for name, tensor in self._tensors():
            if tensor.tensor_type.name in _BLOCK_BYTES and "layers" in name:
                raw = torch.from_numpy(tensor.data.copy())
                yield name, tensor.tensor_type.name, self._in_hf_order(name, raw)

    def block_sizes(self) -> Iterator[tuple[int, int]]:
        """How many weights, and in how many bytes, of each tensor of :meth:`blocks`."""
        for name, tensor in self._tensors():
            if tensor.tensor_type.name in _BLOCK_BYTES and "layers" in name:
                yield int(tensor.n_elements), int(tensor.n_bytes)

    @property
    def _architecture(self) -> str:
        return gguf_field(gguf_reader(self.folder), "general.architecture", "")

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        for tensor in gguf_reader(self.folder).tensors:
            if tensor.name in OF_ROPE:
                continue
            name = hf_name(tensor.name, self._architecture)
            if name is None:
                raise UserError(f"{self.key}: {self.folder}: {tensor.name} is no weight of a known architecture")
            yield name, tensor

    def _in_hf_order(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        heads = turned_heads(name, self._architecture, self.config)
        return rows if heads is None else in_halves(rows, heads)


def gguf_tokens(path: Path) -> tuple[dict[int, str], frozenset[int]]:
    """A file's tokenizer: the text of each id, and the ids that are control tokens or were added."""
    reader = gguf_reader(path)
    tokens, kinds = (gguf_field(reader, f"tokenizer.ggml.{name}", []) for name in ("tokens", "token_type"))
    return dict(enumerate(tokens)), frozenset(index for index, kind in enumerate(kinds) if kind in _ADDED)


def gguf_ends(path: Path) -> list[int]:
    """The tokens at which a file's text ends, or a turn."""
    reader = gguf_reader(path)
    ends = (gguf_field(reader, f"tokenizer.ggml.{kind}_token_id", None) for kind in ("eos", "eot", "eom"))
    return [int(token) for token in ends if token is not None]


class BlockLinear(nn.Module):
    """A linear layer whose weight stays in GGUF's blocks; it is dequantised for each product and dropped again.

    Args:
        raw: ``[out, bytes]``, uint8.
        kind: ``Q8_0``, ``Q4_0`` or ``Q4_1``.
        bias: ``[out]``.
    """

    raw: torch.Tensor

    def __init__(self, raw: torch.Tensor, kind: str, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("raw", raw, persistent=False)
        self._kind = kind
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, dequantised(self.raw, self._kind, x.dtype), self.bias)


def dequantised(raw: torch.Tensor, kind: str, dtype: torch.dtype) -> torch.Tensor:
    """``[out, bytes] -> [out, in]``."""
    blocks = raw.view(len(raw), -1, _BLOCK_BYTES[kind])
    scale = blocks[..., :2].contiguous().view(torch.float16).to(dtype)  # [out, blocks, 1]
    if kind == "Q8_0":
        return (blocks[..., 2:].view(torch.int8).to(dtype) * scale).flatten(1)
    packed = blocks[..., -_BLOCK // 2 :]
    values = torch.cat([packed & 15, packed >> 4], -1).to(dtype)
    if kind == "Q4_0":
        return ((values - 8) * scale).flatten(1)
    return (values * scale + blocks[..., 2:4].contiguous().view(torch.float16).to(dtype)).flatten(1)
