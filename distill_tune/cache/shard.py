"""A file of rows' records: safetensors, mapped into memory, each row with its digest and its checksum."""

import dataclasses
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from distill_tune.cache.encoding import positions_in
from distill_tune.data.row_digest import DIGEST_BYTES
from distill_tune.disk import write_whole
from distill_tune.errors import UserError

_NAME_DIGITS = 32  # of SHA-256


@dataclasses.dataclass(frozen=True, eq=False)
class Shard:
    """
    Attributes:
        digests: of each row, ``[rows, 16]``, uint8.
        ends: where each row's bytes begin, and the end, ``[rows + 1]``, int64.
        positions: of each row, ``[rows]``, int32.
        checksums: CRC-32 of each row's bytes, ``[rows]``, int64.
        records: the bytes of all rows, mapped: read when they are asked for, and once for all processes.
    """

    path: Path
    digests: numpy.ndarray
    ends: numpy.ndarray
    positions: numpy.ndarray
    checksums: numpy.ndarray
    records: numpy.ndarray

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """
        Raises:
            UserError: it cannot be read.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
            return cls(path, **tensors)
        except (OSError, SafetensorError, TypeError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error

    @classmethod
    def write(cls, folder: Path, digests: Sequence[bytes], rows: Sequence[bytes]) -> Path:
        """A new shard, whose name has the SHA-256 of its content; the same rows make the same file."""
        ends = numpy.cumsum([0, *map(len, rows)], dtype=numpy.int64)
        tensors = {
            "digests": numpy.frombuffer(bytearray(b"".join(digests)), numpy.uint8).reshape(-1, DIGEST_BYTES),
            "ends": ends,
            "positions": numpy.array([positions_in(row) for row in rows], numpy.int32),
            "checksums": numpy.array([zlib.crc32(row) for row in rows], numpy.int64),
            "records": numpy.frombuffer(bytearray(b"".join(rows)), numpy.uint8),
        }
        content = save({name: torch.from_numpy(array) for name, array in tensors.items()})
        path = folder / f"records-{hashlib.sha256(content).hexdigest()[:_NAME_DIGITS]}.safetensors"
        write_whole(path, content)
        return path

    def __len__(self) -> int:
        return len(self.positions)

    def row(self, number: int) -> memoryview:
        """The bytes of a row.

        Raises:
            UserError: they are not as they were written.
        """
        found = self.records[self.ends[number] : self.ends[number + 1]].data
        if zlib.crc32(found) != self.checksums[number]:
            raise UserError(f"{self.path}: row {number + 1} is damaged: its checksum differs; {MADE_ANEW}")
        return found

    def sizes(self, known: set[bytes]) -> dict[str, int]:
        """For the manifest.

        Args:
            known: digests of rows that other shards have, as of processes that met the same row, and which are not
                counted again; those of this one are added.
        """
        new = [row for row, digest in enumerate(map(bytes, self.digests)) if digest not in known]
        known.update(map(bytes, self.digests))
        return {"bytes": self.path.stat().st_size, "rows": len(new), "positions": int(self.positions[new].sum())}


MISSING = "is missing; copy it again, or the command that made the cache makes it anew"
MADE_ANEW = "copy it again, or delete it, and the command that made the cache makes it anew"


def shard_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("records-*.safetensors"))


def damage_of(path: Path) -> str | None:
    """What is wrong with a shard, read whole; None where nothing is."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:_NAME_DIGITS]
    return None if path.stem == f"records-{digest}" else f"{path}: is damaged: its checksum differs; {MADE_ANEW}"
