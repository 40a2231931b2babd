"""Named tensors, sharded or whole, in safetensors files: each rank writes its own part, any number of ranks reads."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from distill_tune.errors import UserError

_FILE_BYTES = 10**9  # a file lies in memory once more while it is written


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], group: dist.ProcessGroup | None) -> None:
    """
    Args:
        folder: that is there; it gets files of about a GB from each rank.
        tensors: on the CPU; the same names on every rank.
        group: of gloo; None for a lone process.

    Raises:
        OSError: a rank could not write.
    """
    files = _file_of_each(tensors, num_ranks=1 if group is None else group.size())
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    try:
        with _quietly():
            dcp.save(dict(tensors), storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        raise _first_of(error) from error
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _file_of_each(tensors: Mapping[str, torch.Tensor], num_ranks: int) -> dict[str, int]:
    """The number of the file, from 1, that a rank writes its part of each tensor to."""
    num_bytes, files = 0, {}
    for name, tensor in tensors.items():
        files[name] = 1 + num_bytes // _FILE_BYTES
        num_bytes += tensor.numel() * tensor.element_size() // num_ranks
    return files


def shapes_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, on the meta device.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        found: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be read: {str(error).splitlines()[0]}") from error
    return {name: torch.empty(data.size, dtype=data.properties.dtype, device="meta") for name, data in found.items()}


def read_tensors(folder: Path, into: Mapping[str, torch.Tensor]) -> None:
    """Fill tensors in place, of sharded ones this rank's part. Every rank reads by itself.

    Raises:
        UserError: a file cannot be read, or has not what is wanted.
    """
    try:
        with _quietly():
            dcp.load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, CheckpointException) as error:
        told = _first_of(error) if isinstance(error, CheckpointException) else error
        raise UserError(f"{folder}: cannot be read: {str(told).splitlines()[0]}") from error


def _first_of(error: CheckpointException) -> BaseException:
    found: Any = next(iter(error.failures.values()))
    cause = found[0] if isinstance(found, tuple) else found
    return cause if isinstance(cause, OSError) else OSError(str(cause))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what is said about a lone process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("torch.distributed.checkpoint")
        was_disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = was_disabled
