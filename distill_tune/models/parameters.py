"""A model's parameters by their own names, whatever activation checkpointing and torch.compile have wrapped around."""

from collections.abc import Iterator

from torch import nn

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def plain_name(name: str) -> str:
    """A parameter's name as the state dict has it."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters()``, by plain names."""
    return ((plain_name(name), parameter) for name, parameter in model.named_parameters())


# Of an NF4 weight: four bits, and a quantised scale for each 64 of them (arXiv 2305.14314, §3).
NF4_BYTES = 0.516


def num_bytes(parameter: nn.Parameter) -> float:
    """What a parameter takes in memory, of one on the meta device what it would take."""
    is_nf4 = type(parameter.data).__name__ == "NF4Tensor"
    return parameter.numel() * (NF4_BYTES if is_nf4 else parameter.element_size())
