"""How a format rounds weights, and activations where it does: each value becomes the one that the format gives back.

Each scheme is the arithmetic of the tool that writes the format, operation by operation, so that its values are those
of the shipped file bit for bit.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import torch

from distill_tune.errors import UserError

_GGML_BLOCK = 32
_GROUPS_OF_INT4 = (32, 64, 128, 256)  # which torchao's kernels have


@runtime_checkable
class Scheme(Protocol):
    """
    Attributes:
        groupsize: neighbouring weights of a row that share a scale.
        fits: the format as `distill-tune export --to` names it.
    """

    @property
    def groupsize(self) -> int: ...
    @property
    def fits(self) -> str: ...

    def weights(self, weight: torch.Tensor) -> torch.Tensor:
        """``[out, in]``, ``in`` a multiple of groupsize, of any float dtype; a new tensor of the same."""
        ...

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        """What a layer reads, ``[..., in]``; itself where the format leaves it as it is."""
        ...


class _WeightOnly:
    def activations(self, x: torch.Tensor) -> torch.Tensor:
        return x


@dataclasses.dataclass(frozen=True)
class Int8DynActInt4Weight:
    """Weights in int4, activations in int8 token by token: torchao's ``Int8DynamicActivationIntxWeightConfig``.

    A group's scale s is its largest magnitude over 7.5, its values s * -8 to s * 7. A token's int8 values reach from
    its least to its largest number, and zero is one of them. All of it is computed in the dtype of what is rounded.

    Args:
        groupsize: weights that share a scale.

    Raises:
        UserError: a groupsize below 2.
    """

    groupsize: int = 32

    def __post_init__(self) -> None:
        if self.groupsize < 2:
            raise UserError(f"quantizer.groupsize={self.groupsize}: must be at least 2")

    @property
    def fits(self) -> str:
        return "torchao:int8-int4"

    def weights(self, weight: torch.Tensor) -> torch.Tensor:
        groups = _groups(weight, self.groupsize)
        scale = _at_least_normal(groups.abs().amax(-1, keepdim=True) / 7.5)
        return ((groups * (1.0 / scale)).round().clamp(-8, 7) * scale).view_as(weight)

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
        scale = _at_least_normal((high - low) / 255.0)
        zero = (-128 - (low / scale).round()).clamp(-128, 127)
        return (((x * (1.0 / scale)).round() + zero).clamp(-128, 127) - zero) * scale


@dataclasses.dataclass(frozen=True)
class Int4WeightOnly(_WeightOnly):
    """Weights in int4, from a group's least to its largest: torchao's ``Int4WeightOnlyConfig``, as its own QAT has it.

    Args:
        groupsize: weights that share scale and offset: 32, 64, 128 or 256.

    Raises:
        UserError: another groupsize.
    """

    groupsize: int = 128

    def __post_init__(self) -> None:
        if self.groupsize not in _GROUPS_OF_INT4:
            there_are = ", ".join(map(str, _GROUPS_OF_INT4))
            raise UserError(f"quantizer.groupsize={self.groupsize}: must be one of {there_are}, which torchao packs")

    @property
    def fits(self) -> str:
        return "torchao:int4"

    def weights(self, weight: torch.Tensor) -> torch.Tensor:
        groups = _groups(weight.float(), self.groupsize)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        scale = (high - low).clamp(min=1e-6) / 15
        steps = ((groups - low) / scale).round().clamp(0, 15) - 8
        return (steps * scale + (low + scale * 8)).view_as(weight).to(weight.dtype)


@dataclasses.dataclass(frozen=True)
class Q4_0(_WeightOnly):
    """ggml's Q4_0, as llama.cpp and Ollama run it: 4.5 bits a weight.

    A block's scale is that number of it which is furthest from zero, with its sign, over -8, kept in float16; what is
    rounded is divided by the scale before it is.
    """

    @property
    def groupsize(self) -> int:
        return _GGML_BLOCK

    @property
    def fits(self) -> str:
        return "gguf:q4_0"

    def weights(self, weight: torch.Tensor) -> torch.Tensor:
        blocks = _groups(weight.float(), _GGML_BLOCK)
        furthest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        scale, inverse = _ggml_scale(furthest / -8)
        steps = (blocks * inverse + 8.5).trunc().clamp(max=15) - 8
        return (steps * scale).view_as(weight).to(weight.dtype)


@dataclasses.dataclass(frozen=True)
class Q8_0(_WeightOnly):
    """ggml's Q8_0: 8.5 bits a weight, a block's scale its largest magnitude over 127, kept in float16."""

    @property
    def groupsize(self) -> int:
        return _GGML_BLOCK

    @property
    def fits(self) -> str:
        return "gguf:q8_0"

    def weights(self, weight: torch.Tensor) -> torch.Tensor:
        blocks = _groups(weight.float(), _GGML_BLOCK)
        scale, inverse = _ggml_scale(blocks.abs().amax(-1, keepdim=True) / 127)
        steps = blocks * inverse
        whole = steps.abs().floor()
        whole += (2 * (steps.abs() - whole)).floor()  # halves away from zero, as C's roundf
        return (steps.sign() * whole * scale).view_as(weight).to(weight.dtype)


def _groups(weight: torch.Tensor, groupsize: int) -> torch.Tensor:
    """``[out, in] -> [out, in / groupsize, groupsize]``."""
    return weight.unflatten(-1, (-1, groupsize))


def _at_least_normal(scale: torch.Tensor) -> torch.Tensor:
    return scale.clamp(min=torch.finfo(scale.dtype).smallest_normal)


def _ggml_scale(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale as a file keeps it, and what numbers are multiplied by, which is not rounded; 0 where that is 0."""
    kept = exact.half().float()
    return kept, torch.where(kept == 0, 0.0, 1 / exact)
