"""Hidden states of chosen layers, beside the last one, and the projectors between two models' widths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError

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


def match_layers(student: TransformerDecoder, teacher: Any, hidden_loss: Any) -> None:
    """Have student and teacher keep the hidden states that a loss pairs; projectors join the student where needed.

    Projectors are sharded, clipped and saved to resume from as the student's other parameters are, and left out of what
    is exported.

    Args:
        student: on the meta device.
        teacher: a :class:`~distill_tune.teachers.Teacher`.
        hidden_loss: a :class:`~distill_tune.losses.HiddenLoss`.

    Raises:
        UserError: a layer that one of them has not; a teacher without hidden states.
    """
    try:
        pairs = hidden_loss.pairs(len(student.layers), teacher.num_layers)
    except ValueError as error:
        raise UserError(f"hidden_loss.{error}") from error
    if not pairs:
        return
    if not teacher.num_layers:
        raise UserError("hidden_loss: needs a single teacher; teacher_model is a list, or gives no hidden states")
    keep_hidden_states(student, [layer for layer, _ in pairs])
    teacher.keep_hidden_states([layer for _, layer in pairs])
    weight = student.tok_embeddings.weight
    if weight.shape[1] != teacher.width:
        linear = [
            nn.Linear(weight.shape[1], teacher.width, bias=False, device="meta", dtype=weight.dtype) for _ in pairs
        ]
        setattr(student, PROJECTORS, nn.ModuleList(linear))


def projectors(student: TransformerDecoder) -> Sequence[nn.Module]:
    """From the student's width to the teacher's, for each kept layer."""
    return getattr(student, PROJECTORS, None) or [nn.Identity()] * len(getattr(student, "kept_layers", ()))


def is_projector(name: str) -> bool:
    """Whether a parameter's name is that of a projector."""
    return name.startswith(f"{PROJECTORS}.")
