"""What a user says of an export beside its format."""

import dataclasses
import re
from pathlib import Path

import torch

from distill_tune.errors import UserError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*[KMGT]B", re.IGNORECASE)


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


def require_size(text: str) -> None:
    """
    Raises:
        UserError: it is no size of a file as huggingface_hub reads it, or 0.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise UserError(f"--max-shard-size {text}: must be a number above 0 and KB, MB, GB or TB, as 2GB or 500MB")
