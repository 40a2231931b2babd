"""The teacher's output layer beside its hidden states."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from distill_tune.cache.beside import OUTPUT_LAYER, content_beside
from distill_tune.cache.manifest import write_or_tell
from distill_tune.errors import UserError
from distill_tune.losses import LinearProjection


def output_layer_as_bytes(projection: LinearProjection) -> bytes:
    tensors = {"weight": projection.weight, "bias": projection.bias}
    if projection.softcap is not None:
        tensors["softcap"] = torch.tensor(projection.softcap, dtype=torch.float64)
    return save({name: of.detach().cpu().contiguous() for name, of in tensors.items() if of is not None})


def output_layer_of_bytes(content: bytes, device: torch.device) -> LinearProjection:
    """
    Raises:
        KeyError, SafetensorError: other bytes.
    """
    tensors = load(content)
    softcap, bias = tensors.get("softcap"), tensors.get("bias")
    return LinearProjection(
        tensors["weight"].to(device),
        None if bias is None else bias.to(device),
        None if softcap is None else float(softcap),
    )


def write_output_layer(folder: Path, projection: object) -> None:
    """
    Raises:
        UserError: it is no plain matrix, as a quantised one is not; the disk is full, or fails.
    """
    if not isinstance(projection, LinearProjection):
        raise UserError(
            "cache.kind=hidden: the teacher's output layer is quantised, or has an adapter; take cache.kind=top_k, "
            "or a teacher whose output layer is a plain matrix"
        )
    write_or_tell(folder / OUTPUT_LAYER, output_layer_as_bytes(projection))


def read_output_layer(folder: Path, device: torch.device) -> LinearProjection:
    """
    Raises:
        UserError: it cannot be read, or is not as it was written.
    """
    try:
        return output_layer_of_bytes(content_beside(folder, OUTPUT_LAYER), device)
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder / OUTPUT_LAYER}: cannot be read: {error}") from error
