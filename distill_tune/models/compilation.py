"""torch.compile of a model's layers, for rows of any length."""

import os
from typing import Any

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)

from torchtune.modules import TransformerSelfAttentionLayer

# How often one layer's code may be compiled: for kinds of layers (with a window or without, with adapters, the first
# one, whose input takes no gradient) times models times training, validation and teaching, each twice. Beyond it
# PyTorch goes on without compiling; one Gemma 3 with a validation set goes beyond its own limit of 8.
_VARIANTS = 64


def compile_layers(model: nn.Module) -> None:
    """Compile a model's layers in place; those of one kind share what is compiled, whichever model they belong to.

    Args:
        model: on the meta device or not, activation checkpointing around its layers or not.
    """
    for module in model.modules():
        if isinstance(module, TransformerSelfAttentionLayer):
            compile_module(module)


def compile_module(module: Any) -> None:
    """Compile a module in place: for the first length, and at the second one for all.

    The compiler is PyTorch's inductor, or what the environment variable ``TORCH_COMPILE_BACKEND`` names.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)
    module.compile(backend=os.environ.get("TORCH_COMPILE_BACKEND", "inductor"))
