"""What torchao is asked for, by kind: the same objects for quantising and for training with its rounding."""

from typing import Any

import torch

from distill_tune.errors import UserError

GROUP_SIZE = 32  # weights that share a scale, of the kinds that have groups
# By kind, the bits of a quantised weight with its scale beside it in 16 bits; of int8 and fp8 a row shares one.
BITS = {"int8": 8.0, "fp8": 8.0, "int8-int4": 4 + 16 / GROUP_SIZE, "int4": 4 + 32 / GROUP_SIZE}
KINDS = tuple(BITS)


def torchao_config(kind: str) -> Any:
    """torchao's config object of a kind.

    ``int8``: weights in 8 bits, a scale a row. ``fp8``: the same in float8_e4m3fn. ``int8-int4``: weights in 4 bits,
    a scale for 32 of them, and activations in 8 bits, a scale and zero point a token, found while it runs. ``int4``:
    weights in 4 bits, a scale and zero point for 32, by kernels for CUDA.

    Raises:
        UserError: this torchao does not have it.
    """
    try:
        from torchao import quantization
        from torchao.quantization.granularity import PerGroup

        if kind == "int8":
            return quantization.Int8WeightOnlyConfig()
        if kind == "fp8":
            return quantization.Float8WeightOnlyConfig()
        if kind == "int4":
            return quantization.Int4WeightOnlyConfig(group_size=GROUP_SIZE)
        return quantization.Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # type: ignore[attr-defined]
            weight_granularity=PerGroup(GROUP_SIZE),
        )
    except (ImportError, AttributeError) as error:
        raise UserError(f"torchao:{kind}: this torchao does not have it ({error}); pip install -U torchao") from error


def has_groups(kind: str) -> bool:
    """Whether a row must be a multiple of :data:`GROUP_SIZE` weights."""
    return kind in ("int8-int4", "int4")
