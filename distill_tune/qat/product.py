"""The product of a fake-quantised layer, whose backward pass keeps nothing but what a plain layer's would."""

from typing import Any

import torch
import torch.nn.functional as F

from distill_tune.qat.schemes import Scheme


def quantized_weight(
    weight: torch.Tensor, scheme: Scheme, down: torch.Tensor | None, up: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """``[out, in]``: the weight as it ships, its adapters merged before it is rounded."""
    return scheme.weights(merged(weight, down, up, scaling))


def merged(weight: torch.Tensor, down: torch.Tensor | None, up: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """W + s B A in float32, in W's dtype, as the export merges it (arXiv 2106.09685, eq. 3)."""
    if down is None or up is None:
        return weight
    return (weight.float() + (scaling * up.float()) @ down.float()).to(weight.dtype)


class QuantizedProduct(torch.autograd.Function):
    """``q(x) @ q(W + s B A).T``, gradients straight through the rounding (arXiv 1308.3432, §2).

    That is, those of the product for rounded values are taken for those of the values themselves. What is rounded is
    rounded again in the backward pass: a copy of all weights would else be kept until then, under FSDP of those that
    other ranks hold.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        down: torch.Tensor | None,
        up: torch.Tensor | None,
        scaling: float,
        scheme: Scheme,
    ) -> torch.Tensor:
        """
        Args:
            x: ``[..., in]``.
            weight: W ``[out, in]``.
            down, up: A ``[r, in]`` and B ``[out, r]``; None without adapters.
            scaling: s.

        Returns:
            ``[..., out]``.
        """
        ctx.save_for_backward(x, weight, down, up)
        ctx.scaling, ctx.scheme = scaling, scheme
        return F.linear(scheme.activations(x), quantized_weight(weight, scheme, down, up, scaling))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, down, up = ctx.saved_tensors
        of_x = of_weight = of_down = of_up = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ quantized_weight(weight, ctx.scheme, down, up, ctx.scaling)
        if any(ctx.needs_input_grad[1:4]):
            rows = ctx.scheme.activations(x).flatten(end_dim=-2)
            of_merged = gradient.flatten(end_dim=-2).t() @ rows
            of_weight = of_merged if ctx.needs_input_grad[1] else None
            if down is not None and up is not None:
                of_down = ctx.scaling * (up.t() @ of_merged.to(up.dtype))
                of_up = ctx.scaling * (of_merged.to(down.dtype) @ down.t())
        return of_x, of_weight, of_down, of_up, None, None
