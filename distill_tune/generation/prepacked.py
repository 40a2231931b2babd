"""Weights laid out once as oneDNN's products read them: a product of few rows else spends its time on doing that."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import qat

from torchtune.modules.peft import LoRALinear

Product = Callable[[torch.Tensor], torch.Tensor]

_LEAST_NUMBERS = 100_000  # of a weight; below, a call of oneDNN takes longer than the product
_MOST_BYTES = 2**32  # of a model's weights; of a larger one the copies may find no room
_ROWS = 16  # that the layout is chosen for; it serves any number
_MOST_ROWS = 64  # of a product: oneDNN keeps code of about a megabyte for each of 1,024 numbers of rows and layers


def has_room_for_copies(model: nn.Module) -> bool:
    return sum(parameter.nbytes for parameter in model.parameters()) <= _MOST_BYTES


@contextlib.contextmanager
def prepacked_layers(module: nn.Module) -> Iterator[None]:
    """Have linear layers multiply by copies of their weights, as these are now, with their adapters merged.

    In float32 on a CPU alone, where PyTorch's own products of a few rows take up to four times as long. Quantised and
    DoRA layers stay as they are.
    """
    products = {layer: product for layer in module.modules() if (product := _product_of(layer))}
    with _multiplying_by(products):
        yield


@contextlib.contextmanager
def quantized_once(module: nn.Module, prepack: bool) -> Iterator[None]:
    """Have fake-quantised layers multiply by their weights as they are now, rounded here, not for each product.

    Args:
        prepack: by copies as :func:`prepacked_layers` makes them.
    """
    with torch.no_grad():
        products = {layer: _quantized_product(layer, prepack) for layer in qat.fake_quantized_layers(module)}
    with _multiplying_by(products):
        yield


def _quantized_product(layer: qat.FakeQuantized, prepack: bool) -> Product:
    weight, activations = layer.quantized_weight(), layer.quantization.scheme.activations
    multiply = prepacked(weight, layer.bias) if prepack else None
    multiply = multiply or functools.partial(F.linear, weight=weight, bias=layer.bias)
    return lambda x: multiply(activations(x))


@contextlib.contextmanager
def _multiplying_by(products: Mapping[Any, Product]) -> Iterator[None]:
    for layer, product in products.items():
        layer.forward = product
    try:
        yield
    finally:
        for layer in products:
            vars(layer).pop("forward", None)  # of two at a time the first to end has taken it


def prepacked(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product | None:
    """``x @ weight.T + bias`` of ``[..., d]``, float32; None where PyTorch's own product is as fast or the only one."""
    if not _is_plain(weight) or weight.numel() < _LEAST_NUMBERS or not torch.backends.mkldnn.is_available():
        return None
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def product(x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(-1, x.shape[-1]).split(_MOST_ROWS)
        found = [multiply(part, laid_out, bias, "none", [], "") for part in parts]
        return (found[0] if len(found) == 1 else torch.cat(found)).view(*x.shape[:-1], len(weight))

    return product


@torch.no_grad()
def _product_of(layer: Any) -> Product | None:
    if type(layer) is nn.Linear:
        return prepacked(layer.weight, layer.bias)
    if type(layer) is LoRALinear and not layer.disabled and _is_plain(layer.weight):
        scaling = layer.alpha / layer.rank
        merged = torch.addmm(layer.weight, layer.lora_b.weight, layer.lora_a.weight, alpha=scaling)
        return prepacked(merged, layer.bias) or functools.partial(F.linear, weight=merged, bias=layer.bias)
    return None


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether it is float32 on a CPU, neither quantised nor sharded."""
    return type(weight.data) is torch.Tensor and weight.device.type == "cpu" and weight.dtype == torch.float32
