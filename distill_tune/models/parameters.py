"""A model's parameters by their own names, whatever activation checkpointing and torch.compile have wrapped around."""

from collections.abc import Iterator

from torch import nn
from torch.distributed.fsdp import FSDPModule

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def plain_name(name: str) -> str:
    """A parameter's name as the state dict has it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters()``, by plain names."""
    return ((plain_name(name), parameter) for name, parameter in model.named_parameters())


def reshard(model: nn.Module) -> None:
    """Put a sharded model's own parameters back, of each this rank's part; any other model stays as it is.

    A forward that no backward follows leaves what lies outside of the layers gathered: other tensors, in the dtype that
    the model computes in, which no optimizer knows.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


# Of an NF4 weight: four bits, and a quantised scale for each 64 of them (arXiv 2305.14314, §3).
NF4_BYTES = 0.516


def num_bytes(parameter: nn.Parameter) -> float:
    """What a parameter takes in memory, of one on the meta device what it would take."""
    is_nf4 = type(parameter.data).__name__ == "NF4Tensor"
    return parameter.numel() * (NF4_BYTES if is_nf4 else parameter.element_size())
