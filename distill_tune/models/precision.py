"""What trains is held in one dtype, and cast to the one that the model computes in where it is used."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.hidden_states import PROJECTORS

from torchtune.modules import TransformerDecoder


def compute_in(model: TransformerDecoder, dtype: torch.dtype) -> None:
    """Have a model on one device compute in ``dtype``, whatever its trained parameters are held in.

    As FSDP's mixed precision does it on several: a layer's parameters are cast as it begins, so that products,
    activations and the gradients of both are of ``dtype``, and what arrives at the parameters is of theirs. Rows of the
    embeddings are cast as they are looked up. The output layer is the loss's own (:class:`LinearProjection`).

    Args:
        model: with its projectors, before torch.compile and activation checkpointing.
    """
    model.tok_embeddings.register_forward_hook(lambda module, arguments, output: output.to(dtype))
    for module in (*model.layers, model.norm, *getattr(model, PROJECTORS, ())):
        cast = _CastWhileUsed(dtype)
        module.register_forward_pre_hook(cast.begin)
        module.register_forward_hook(cast.end, always_call=True)
    model.computes_in = dtype


def computed_in(model: TransformerDecoder) -> torch.dtype:
    """The dtype of a model's hidden states."""
    return getattr(model, "computes_in", next(model.parameters()).dtype)


@contextlib.contextmanager
def cast_throughout(model: TransformerDecoder) -> Iterator[None]:
    """Have trained parameters cast once, not as each layer begins, for many forward passes past the layers' hooks."""
    casts = [_CastWhileUsed(computed_in(model)) for _ in (*model.layers, model.norm)]
    with torch.no_grad():
        for cast, module in zip(casts, (*model.layers, model.norm), strict=True):
            cast.begin(module, None)
    try:
        yield
    finally:
        for cast, module in zip(casts, (*model.layers, model.norm), strict=True):
            cast.end(module, None, None)


class _CastWhileUsed:
    """Hooks that put casts in the place of a module's trained parameters, and the parameters back."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: list[tuple[nn.Module, str, nn.Parameter]] = []

    @torch.compiler.disable  # a compiled layer's hooks would be compiled with it
    def begin(self, module: nn.Module, arguments: Any) -> None:
        self._held = list(self._of_another_dtype(module))
        for owner, name, parameter in self._held:
            owner._parameters[name] = parameter.to(self._dtype)  # type: ignore[assignment]

    @torch.compiler.disable
    def end(self, module: nn.Module, arguments: Any, output: Any) -> None:
        for owner, name, parameter in self._held:
            owner._parameters[name] = parameter
        self._held = []

    def _of_another_dtype(self, module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None and parameter.requires_grad and parameter.dtype != self._dtype:
                    yield owner, name, parameter
