"""What a user says of an export beside its format."""

import dataclasses
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class Settings:
    """
    Attributes:
        kind: of a format that has several: ``int8`` of ``torchao:int8``.
        dtype: of the weights, or of those that are not quantised.
        max_shard_size: of a file of weights, as huggingface_hub reads it.
        base_model: how a hub calls the model that the student started from.
        llama_cpp: a folder of llama.cpp, whose tools write what Python cannot.
    """

    kind: str
    dtype: torch.dtype
    max_shard_size: str = "5GB"
    base_model: str | None = None
    llama_cpp: Path | None = None
