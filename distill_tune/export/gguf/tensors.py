"""Weights of a Hugging Face folder as the tensors of a GGUF file, one after another."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy
import torch

from distill_tune.errors import UserError
from distill_tune.export.gguf.metadata import score_factor
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.decoder_config import DecoderConfig
from distill_tune.models.gguf_names import ARCHITECTURES, adds_one_to, gguf_name, in_pairs, turned_heads
from distill_tune.models.hf_names import canonical_name, not_of_the_decoder, what_it_is

# Bits a weight of the kinds of tensors, by llama.cpp's names: blocks of 32 share a scale (and a minimum).
KINDS = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"
_LEAST = "q8_0"  # of embeddings and output, which suffer most
_WITHOUT_BLOCKS = "f16"
_LARGEST_F16 = 65_504.0
_AT_ONCE = 2**24  # weights that are made numbers of 32 bits at a time


@dataclasses.dataclass(frozen=True)
class Tensor:
    """
    Attributes:
        name: in the file.
        shape: ``[out, in]`` or ``[size]``.
        kind: one of :data:`KINDS`.
    """

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def num_bytes(self) -> int:
        block, size = _block(self.kind)
        return math.prod(self.shape) // block * size


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The weights of a checkpoint for a file of one kind.

    Attributes:
        kind: of its matrices.
    """

    checkpoint: Checkpoint
    shape: DecoderConfig
    kind: str

    def described(self) -> list[Tensor]:
        """All of them, in the order of :meth:`numbers`.

        Raises:
            UserError: a weight that the architecture does not have.
        """
        headers = self.checkpoint.headers()
        return [
            Tensor(self._name(name), tuple(header.shape), self._kind(self._name(name), tuple(header.shape)))
            for name, header in headers.items()
            if not not_of_the_decoder(name)
        ]

    def numbers(self) -> Iterator[tuple[str, Iterator[numpy.ndarray]]]:
        """Name and content of each, in parts of some rows: float32, float16, or bytes of blocks.

        Raises:
            UserError: numbers that are not finite, or too large for the kind.
        """
        for name, weight in self.checkpoint.weights():
            if not not_of_the_decoder(name):
                yield self._name(name), self._parts(canonical_name(name), weight)

    def _name(self, name: str) -> str:
        found = gguf_name(canonical_name(name), self._architecture)
        if found is None:
            raise UserError(f"{name} is no weight of a {self.shape.architecture}{what_it_is(name)}")
        return found

    def _kind(self, name: str, shape: tuple[int, ...]) -> str:
        if len(shape) < 2 or self.kind == "f32":  # norms and biases, which llama.cpp wants so
            return "f32"
        kind = self.kind
        if name in (_EMBEDDINGS, _OUTPUT) and kind.startswith("q"):
            kind = _LEAST
        return kind if shape[-1] % _block(kind)[0] == 0 else _WITHOUT_BLOCKS

    def _parts(self, name: str, weight: torch.Tensor) -> Iterator[numpy.ndarray]:
        from gguf import GGMLQuantizationType, quants

        heads = turned_heads(name, self._architecture, self._heads)
        rows = weight if heads is None else in_pairs(weight, heads)
        kind = self._kind(self._name(name), tuple(weight.shape))
        factor = score_factor(self.shape) if name.endswith(self._scaled) else 1.0
        at_once = max(1, _AT_ONCE // max(1, rows[0].numel()))
        for part in rows.split(at_once):
            numbers = part.to(torch.float32)
            numbers = (numbers + 1 if adds_one_to(name, self._architecture) else numbers) * factor
            _check(self.checkpoint, name, numbers, kind)
            yield quants.quantize(numbers.contiguous().numpy(), GGMLQuantizationType[kind.upper()])

    @property
    def _architecture(self) -> str:
        return ARCHITECTURES[self.shape.architecture]

    @property
    def _heads(self) -> Mapping[str, int]:
        return {"num_attention_heads": self.shape.num_heads, "num_key_value_heads": self.shape.num_kv_heads}

    @property
    def _scaled(self) -> str:
        """What queries come of last: their norm, or their projection."""
        return "self_attn.q_norm.weight" if self.shape.qk_norm else "self_attn.q_proj.weight"


def _check(checkpoint: Checkpoint, name: str, numbers: torch.Tensor, kind: str) -> None:
    largest = float(numbers.abs().max()) if numbers.numel() else 0.0
    if not math.isfinite(largest):
        raise UserError(f"{checkpoint.key}: {checkpoint.folder}: {name} has numbers that are not finite")
    if kind == "f16" and largest > _LARGEST_F16:
        raise UserError(
            f"{checkpoint.key}: {checkpoint.folder}: {name} has {largest:g}, more than float16 holds; take bf16"
        )


def _block(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]


def file_type(kind: str) -> Any:
    """general.file_type of a file whose matrices are of this kind."""
    from gguf import LlamaFileType

    return LlamaFileType.ALL_F32 if kind == "f32" else LlamaFileType[f"MOSTLY_{kind.upper()}"]
