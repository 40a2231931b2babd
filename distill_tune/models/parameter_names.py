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
