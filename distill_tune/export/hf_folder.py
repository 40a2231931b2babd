"""A Hugging Face folder: adapters merged, in shards, with everything that its readers look for."""

import shutil
from pathlib import Path

import torch

from distill_tune.export.opened import Opened, open_with_transformers
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source
from distill_tune.qat.note import NOTE
from distill_tune.training.export import write_model_folder

# Nats a token: what is left of rounding in float32, and what bf16 or fp16 take from weights of more digits.
SAME, _ROUNDED = 1e-5, 5e-3
_BITS = {torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


def check(source: Source, settings: Settings) -> list[str]:
    return []


def write(source: Source, folder: Path, settings: Settings) -> list[str]:
    write_model_folder(
        folder,
        source.weights(settings.dtype),
        source.config(),
        source.checkpoint.folder,
        settings.dtype,
        source.tokenizer,
        max_shard_size=settings.max_shard_size,
    )
    if (note := source.folder / NOTE).is_file():
        shutil.copyfile(note, folder / NOTE)
    return []


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    return open_with_transformers(folder, device)


def max_kl(source: Source, settings: Settings) -> float:
    """A merged adapter has more digits than its base."""
    own = torch.float32 if source.checkpoint.adapter else source.dtype
    return SAME if _BITS[settings.dtype] >= _BITS.get(own, 0) else _ROUNDED
