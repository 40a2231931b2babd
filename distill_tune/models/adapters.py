"""LoRA and DoRA adapters inside a model: which parameters they are, their numbers, their first values."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.hidden_states import is_projector
from distill_tune.models.parameters import named_parameters, plain_name

from torchtune.modules.peft import DoRALinear, LoRALinear, get_adapter_params


class LoraShape(NamedTuple):
    rank: int
    alpha: float


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the parameters that adapters added: LoRA's A and B, DoRA's magnitude."""
    return {plain_name(name) for name in get_adapter_params(model)}


def freeze_all_but_adapters(model: nn.Module, trained_in: torch.dtype = torch.float32) -> bool:
    """Where a model has adapters, only they train, and projectors. Returns whether it has adapters.

    Args:
        trained_in: the dtype that what trains is held in from now on; of adapters and what trains beside them float32.
    """
    adapters = adapter_names(model)
    for name, parameter in named_parameters(model):
        parameter.requires_grad_(name in adapters or is_projector(name) if adapters else True)
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32 if adapters else trained_in)
    return bool(adapters)


def initial_values(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, torch.Tensor]]:
    """The values that adapters and projectors begin with, whole and on the CPU, so that every rank draws the same.

    LoRA's A is uniform as in its authors' code, B is zero (arXiv 2106.09685, §4.1); DoRA's magnitude follows from the
    weights once they are there. Projectors are uniform as PyTorch's own linear layers are.

    Args:
        parameters: by name; ``model``'s own, sharded or not.
    """
    for name in sorted({*adapter_names(model), *filter(is_projector, parameters)}):
        shape = parameters[name].shape
        value = torch.zeros(shape, device="cpu")
        if name.endswith("lora_a.weight") or is_projector(name):
            nn.init.kaiming_uniform_(value, a=math.sqrt(5))
        yield name, value


def lora_shape(model: nn.Module) -> LoraShape | None:
    """Rank and alpha of a model's adapters, the same for all of them; None where it has none."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            return LoraShape(module.rank, module.alpha)
        if isinstance(module, DoRALinear):  # knows only the quotient
            rank = module.lora_a.out_features
            return LoraShape(rank, module.scaling * rank)
    return None
