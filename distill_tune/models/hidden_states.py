"""Hidden states of chosen layers, beside the last one, and the projectors between two models' widths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)

from torchtune.modules import TransformerDecoder

PROJECTORS = "hidden_projectors"


def keep_hidden_states(model: TransformerDecoder, layers: Sequence[int]) -> None:
    """Have :func:`hidden_states` return those of ``layers``: 0 the embeddings, i what layer i gives."""
    model.kept_layers = tuple(layers)
    model.output_hidden_states = sorted({layer for layer in layers if layer < len(model.layers)})


def hidden_states(
    model: TransformerDecoder, tokens: torch.Tensor, attention: dict[str, Any]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The last hidden states ``[1, s, d]``, after the final norm, and those of the kept layers, ``[s, d]`` each.

    Args:
        model: its output head taken.
        tokens: ``[1, s]``.
    """
    output = model(tokens, **attention)
    *kept, last = output if isinstance(output, list) else [output]
    by_layer = dict(zip(model.output_hidden_states, kept, strict=True)) | {len(model.layers): last}
    return last, [by_layer[layer][0] for layer in getattr(model, "kept_layers", ())]


def add_projectors(student: TransformerDecoder, count: int, teacher_width: int) -> None:
    """Give the student ``count`` projectors from its width to the teacher's, which train with it.

    They are sharded, saved to resume from and clipped as its other parameters are, and left out of what is exported.
    """
    width = student.tok_embeddings.weight.shape[1]
    dtype = student.tok_embeddings.weight.dtype

    def projector() -> nn.Module:
        if width == teacher_width:
            return nn.Identity()
        return nn.Linear(width, teacher_width, bias=False, device="meta", dtype=dtype)

    setattr(student, PROJECTORS, nn.ModuleList(projector() for _ in range(count)))


def is_projector(name: str) -> bool:
    """Whether a parameter's name is that of a projector."""
    return name.startswith(f"{PROJECTORS}.")
