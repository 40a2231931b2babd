"""What torchao is asked for, by kind."""

from typing import Any

import torch

from distill_tune.errors import UserError

KINDS = ("int8", "fp8", "int8-int4", "int4")
GROUP_SIZE = 32  # weights that share a scale, of the kinds that have groups, where the weights were not trained for one
# Beside the weights of a group, in bits.
_SCALES = {"int8-int4": 16, "int4": 32}


def bits_per_weight(kind: str, group_size: int) -> float:
    """Of a quantised weight, its group's scale and zero point included; of int8 and fp8 a whole row shares a scale."""
    return 4 + _SCALES[kind] / group_size if kind in _SCALES else 8.0


def torchao_config(kind: str, group_size: int) -> Any:
    """torchao's config object of a kind.

    ``int8``: weights in 8 bits, a scale a row. ``fp8``: the same in float8_e4m3fn. ``int8-int4``: weights in 4 bits,
    a scale for ``group_size`` of them, and activations in 8 bits, a scale and zero point a token, found while it runs.
    ``int4``: weights in 4 bits, a scale and zero point for ``group_size``, by kernels for CUDA.

    Raises:
        UserError: this torchao does not have it.
    """
    try:
        from torchao import quantization
        from torchao.quantization.granularity import PerGroup

        if kind == "int8":
            return quantization.Int8WeightOnlyConfig(version=2)  # what torchao 0.16 has beside cannot be saved
        if kind == "fp8":
            return quantization.Float8WeightOnlyConfig()
        if kind == "int4":
            return quantization.Int4WeightOnlyConfig(group_size=group_size)
        return quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            weight_granularity=PerGroup(group_size),
        )
    except (ImportError, AttributeError) as error:
        raise UserError(f"torchao:{kind}: this torchao does not have it ({error}); pip install -U torchao") from error


def has_groups(kind: str) -> bool:
    """Whether a row must be a multiple of a group's size."""
    return kind in _SCALES
