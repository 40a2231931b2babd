"""A GGUF file in a folder of its own, as the table of formats has it: written by :func:`write_gguf`."""

import shutil
from pathlib import Path

import torch

from distill_tune.errors import UserError
from distill_tune.export import hf_folder
from distill_tune.export.opened import Opened, open_with_transformers
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source

KINDS = ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
_MAX_KL = {"Q8_0": 0.02, "Q5_1": 0.1, "Q5_0": 0.1, "Q4_1": 0.5, "Q4_0": 0.5}


def check(source: Source, settings: Settings) -> list[str]:
    """
    Raises:
        UserError: gguf is not installed.
    """
    try:
        import gguf  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("--to gguf: needs a package; pip install gguf") from error
    return []


def write(source: Source, folder: Path, settings: Settings) -> None:
    from distill_tune.export.gguf import write_gguf

    merged = folder.with_name(f"{folder.name}.merged")
    try:
        hf_folder.write(source, merged, settings)
        folder.mkdir(parents=True)
        write_gguf(merged, folder / _name(source, settings), settings.kind)
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    return open_with_transformers(folder, device, gguf_file=_name(source, settings))


def max_kl(source: Source, settings: Settings) -> float:
    return _MAX_KL.get(settings.kind, hf_folder.max_kl(source, settings))


def _name(source: Source, settings: Settings) -> str:
    return f"{source.name}-{settings.kind}.gguf"
