"""A model's output projection, taken out of its forward so that the loss can own it."""

import dataclasses
from collections.abc import Callable
from types import MethodType

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)

from torchtune.modules import TiedLinear, TransformerDecoder


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """What turns a last hidden state into logits.

    Attributes:
        project: hidden states ``[n, d]`` to logits ``[n, v]``.
        weight: the projection's weight ``[v, d]`` (of a LoRA layer: the base weight).
        trainable: the parameters of ``project`` that take a gradient; empty for a frozen head.
    """

    project: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    trainable: tuple[nn.Parameter, ...]

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]


def take_output_head(model: TransformerDecoder) -> OutputHead:
    """Make ``model(tokens)`` end at its last hidden state ``[b, s, d]``, and return what was left out."""
    model.unembed = MethodType(_final_norm, model)
    return output_head(model)


def output_head(model: TransformerDecoder) -> OutputHead:
    """The output projection of a model, tied to its embeddings or its own, with LoRA or without."""
    projection = model.output
    module = projection.tied_module if isinstance(projection, TiedLinear) else projection
    trainable = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
    return OutputHead(projection, module.weight, trainable)


def _final_norm(model: TransformerDecoder, hidden: torch.Tensor) -> torch.Tensor:
    return model.norm(hidden)
