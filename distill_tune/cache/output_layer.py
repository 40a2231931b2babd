"""The teacher's output layer beside its hidden states."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from distill_tune.cache.manifest import write_whole
from distill_tune.errors import UserError
from distill_tune.losses import LinearProjection

OUTPUT_LAYER = "output_layer.safetensors"


def write_output_layer(folder: Path, projection: object) -> None:
    """
    Raises:
        UserError: it is no plain matrix, as a quantised one is not.
    """
    if not isinstance(projection, LinearProjection):
        raise UserError(
            "cache.kind=hidden: the teacher's output layer is quantised, or has an adapter; take cache.kind=top_k, "
            "or a teacher whose output layer is a plain matrix"
        )
    tensors = {"weight": projection.weight, "bias": projection.bias}
    if projection.softcap is not None:
        tensors["softcap"] = torch.tensor(projection.softcap, dtype=torch.float64)
    content = save({name: of.detach().cpu().contiguous() for name, of in tensors.items() if of is not None})
    write_whole(folder / OUTPUT_LAYER, content)


def read_output_layer(folder: Path, device: torch.device) -> LinearProjection:
    """
    Raises:
        UserError: it cannot be read.
    """
    try:
        tensors = load_file(folder / OUTPUT_LAYER, device=str(device))
        softcap = tensors.get("softcap")
        return LinearProjection(tensors["weight"], tensors.get("bias"), None if softcap is None else float(softcap))
    except (OSError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder / OUTPUT_LAYER}: cannot be read: {error}") from error
