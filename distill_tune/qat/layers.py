"""A student's linear layers with fake quantisation: they compute as they will ship, and train as they are."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.models.loading import some_names
from distill_tune.qat.product import QuantizedProduct, quantized_weight
from distill_tune.qat.schemes import Scheme

from torchtune.modules import FrozenNF4Linear, TransformerDecoder
from torchtune.modules.peft import DoRALinear, LoRALinear


@dataclasses.dataclass
class _Quantization:
    """What the layers of a student share.

    Attributes:
        after: optimizer steps without, in training mode.
        has_begun: whether these are over.
        is_off: for a moment, in any mode.
    """

    scheme: Scheme
    after: int
    has_begun: bool
    is_off: bool = False


class FakeQuantized(nn.Module):
    """A linear layer that :func:`prepare` has changed; its parameters are what they were."""

    quantization: _Quantization
    weight: Any
    bias: Any

    @property
    def is_quantized(self) -> bool:
        return not self.quantization.is_off and (self.quantization.has_begun or not self.training)

    def quantized_weight(self) -> torch.Tensor:
        """``[out, in]``, as it ships."""
        return quantized_weight(self.weight, self.quantization.scheme, *self._adapter())

    def _adapter(self) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
        """A, B and the scaling of their product."""
        return None, None, 1.0

    @torch.compiler.disable  # PyTorch's compiler drops what it sees rounded for a moment, as a scale to float16
    def _product(self, x: torch.Tensor) -> torch.Tensor:
        out = QuantizedProduct.apply(x, self.weight, *self._adapter(), self.quantization.scheme)
        return out if self.bias is None else out + self.bias


class _Linear(FakeQuantized, nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x) if self.is_quantized else nn.Linear.forward(self, x)


class _LoRALinear(FakeQuantized, LoRALinear):
    """Rounds the weight that its adapters are merged into, for that is what ships."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._product(x) if self.is_quantized else LoRALinear.forward(self, x)

    def _adapter(self: Any) -> tuple[torch.Tensor | None, torch.Tensor | None, float]:
        if self.disabled:
            return None, None, 1.0
        return self.lora_a.weight, self.lora_b.weight, self.alpha / self.rank


def prepare(student: TransformerDecoder, scheme: Scheme, after_n_steps: int = 0) -> None:
    """Have the linear layers of a student compute with rounded values, in place; embeddings and output layer stay.

    Parameters, their names and what is saved of them are as before. It composes with FSDP, which gathers a layer's rows
    whole before it runs, with activation checkpointing and torch.compile.

    Args:
        student: on the meta device or not.
        after_n_steps: see :func:`begin_step`; until then its layers train without, in eval mode they never do.

    Raises:
        UserError: a layer whose rows the groups do not divide, or of a kind that cannot be rounded as it ships.
    """
    layers = dict(_linear_layers(student.layers, "layers"))
    if refused := [f"{name}: {why}" for name, layer in layers.items() if (why := _refusal(layer))]:
        raise UserError(f"quantizer: {some_names(refused)}")
    widths = {name: layer.weight.shape[1] for name, layer in layers.items()}
    if uneven := [f"{name} ({width})" for name, width in widths.items() if width % scheme.groupsize]:
        raise UserError(
            f"quantizer: {type(scheme).__name__} rounds {scheme.groupsize} weights of a row together, which do not "
            f"divide the rows of {some_names(uneven)}; {_way_out(scheme, math.gcd(*widths.values()))}"
        )
    shared = _Quantization(scheme, after_n_steps, after_n_steps == 0)
    student.quantization = shared
    for layer in layers.values():
        layer.__class__ = _LoRALinear if isinstance(layer, LoRALinear) else _Linear
        layer.quantization = shared


def scheme_of(model: nn.Module) -> Scheme | None:
    """What a model was prepared for; None where it was not."""
    shared = _shared(model)
    return None if shared is None else shared.scheme


def begin_step(student: nn.Module, step: int) -> None:
    """Quantise from here on where so many steps are over as :func:`prepare` was told; a function of the step alone.

    Args:
        step: optimizer steps taken.
    """
    if (shared := _shared(student)) is not None:
        shared.has_begun = step >= shared.after


@contextlib.contextmanager
def unquantized(model: nn.Module) -> Iterator[None]:
    """Have a model's layers compute with their weights as they are."""
    shared = _shared(model)
    if shared is None:
        yield
        return
    shared.is_off = True
    try:
        yield
    finally:
        shared.is_off = False


def fake_quantized_layers(module: nn.Module) -> Iterator[FakeQuantized]:
    """Those below a module that are quantised as things stand."""
    return (layer for layer in module.modules() if isinstance(layer, FakeQuantized) and layer.is_quantized)


def _shared(model: Any) -> _Quantization | None:
    return getattr(model, "quantization", None)


def _linear_layers(module: nn.Module, prefix: str) -> Iterator[tuple[str, Any]]:
    """Name and layer of whatever has a matrix of its own; an adapter's factors belong to its layer."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}"
        weight = child._parameters.get("weight")
        if weight is not None and weight.ndim == 2:
            yield path, child
        else:
            yield from _linear_layers(child, path)


def _refusal(layer: Any) -> str | None:
    """Why a layer cannot be rounded as it will ship."""
    if isinstance(layer, FrozenNF4Linear) or getattr(layer, "_quantize_base", False):
        return "its weight is in NF4 (quantize_base=True), which is not what would ship; leave one of them out"
    if isinstance(layer, DoRALinear):
        return "the merged weights of DoRA are not rounded here; take LoRA (use_dora=False), or train every parameter"
    if isinstance(layer, LoRALinear) and not isinstance(layer.dropout, nn.Identity):
        return f"lora_dropout={layer.dropout.p}: what ships is the merged weight, which knows none; set lora_dropout=0"
    if type(layer) not in (nn.Linear, LoRALinear):
        return f"a {type(layer).__name__} is not rounded here; nn.Linear and torchtune's LoRALinear are"
    return None


def _way_out(scheme: Scheme, divides_all: int) -> str:
    """What to take instead where a scheme's groups do not divide rows that so many weights would."""
    for groupsize in (128, 64, 32, divides_all):
        with contextlib.suppress(TypeError, UserError):  # it has one groupsize alone, or not this one
            dataclasses.replace(scheme, groupsize=groupsize)  # type: ignore[type-var]
            if divides_all % groupsize == 0:
                return f"set quantizer.groupsize={groupsize}"
    if divides_all > 1:
        return f"take distill_tune.qat.Int8DynActInt4Weight with groupsize={divides_all}"
    return "leave quantizer out"
