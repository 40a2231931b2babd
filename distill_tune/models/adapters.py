"""LoRA and DoRA adapters inside a model: which parameters they are, and their numbers."""

from typing import NamedTuple

from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)

from torchtune.modules.peft import DoRALinear, LoRALinear, get_adapter_params


class LoraShape(NamedTuple):
    rank: int
    alpha: float


def adapter_names(model: nn.Module) -> set[str]:
    """The names of the parameters that adapters added: LoRA's A and B, DoRA's magnitude."""
    return set(get_adapter_params(model))


def freeze_all_but_adapters(model: nn.Module) -> bool:
    """Where a model has adapters, only they train. Returns whether it has any."""
    adapters = adapter_names(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapters if adapters else True)
    return bool(adapters)


def lora_shape(model: nn.Module) -> LoraShape | None:
    """Rank and alpha of a model's adapters, the same for all of them; None where it has none."""
    for module in model.modules():
        if isinstance(module, LoRALinear):
            return LoraShape(module.rank, module.alpha)
        if isinstance(module, DoRALinear):  # knows only the quotient
            rank = module.lora_a.out_features
            return LoraShape(rank, module.scaling * rank)
    return None
