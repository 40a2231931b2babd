"""torch.compile of a model's layers, for rows of any length."""

import os
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton_package

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError

from torchtune.modules import TransformerSelfAttentionLayer

# How often one layer's code may be compiled: for kinds of layers (with a window or without, with adapters, the first
# one, whose input takes no gradient) times models times training, validation and teaching, each twice. Beyond it
# PyTorch goes on without compiling; one Gemma 3 with a validation set goes beyond its own limit of 8.
_VARIANTS = 64


def check_compiler(device: torch.device) -> None:
    """
    Raises:
        UserError: what is to compile for this device is not there.
    """
    backend = _backend()
    if backend not in torch._dynamo.list_backends(exclude_tags=None):
        has = ", ".join(torch._dynamo.list_backends())
        raise UserError(f"compile=True: TORCH_COMPILE_BACKEND={backend}: PyTorch has {has}")
    if backend != "inductor":
        return
    if device.type == "cuda" and not has_triton_package():
        raise UserError("compile=True: PyTorch compiles for CUDA by Triton, which is not installed: pip install triton")
    if device.type == "cpu":
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except (exc.InvalidCxxCompiler, RuntimeError) as error:
            raise UserError(
                "compile=True: on a CPU PyTorch needs a C++ compiler, and finds none: install g++, or name one in the "
                "environment variable CXX"
            ) from error


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
    allow_variants()
    module.compile(backend=_backend())


def allow_variants() -> None:
    """Raise PyTorch's limit on how often one code is compiled."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VARIANTS)


def _backend() -> str:
    return os.environ.get("TORCH_COMPILE_BACKEND", "inductor")
