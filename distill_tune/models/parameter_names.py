"""A model's parameters by their own names, whatever activation checkpointing and torch.compile have wrapped around."""

from collections.abc import Iterator

from torch import nn

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters()``, with the names that its state dict has."""
    for name, parameter in model.named_parameters():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, parameter
