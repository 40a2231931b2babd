"""Writes a cache so that a kill at any moment loses no more than the shard that is being filled."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from distill_tune.cache.manifest import MANIFEST, Manifest
from distill_tune.cache.shard import Shard, shard_files
from distill_tune.disk import keep_to_oneself, retried
from distill_tune.errors import UserError

SHARD_BYTES = 64 * 2**20
_SECONDS = 300  # after which a shard is closed though it is small: what a kill may cost a slow teacher


def begin(folder: Path, manifest: Manifest) -> Manifest:
    """Make a cache's folder, or go on with the one that is there, of the same teacher and settings.

    Returns:
        The manifest that is there now: of a cache that was finished, as it was, until :func:`finish` adds to it.

    Raises:
        UserError: it cannot be written, another run writes to it, or it is another cache, or no cache.
    """
    was = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not keep_to_oneself(folder):
            raise UserError(f"output_dir={folder}: another run is writing there; wait for it, or name another")
        if (folder / MANIFEST).exists():
            was = Manifest.read(folder)
            if differ := list(was.differences(manifest)):
                told = "\n  ".join(differ)
                raise UserError(
                    f"output_dir={folder}: holds another cache; set it back, or name another folder\n  {told}"
                )
            manifest = was
        elif others := sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")):
            raise UserError(f"output_dir={folder}: holds {others[0]}, and is no cache; name a new folder")
        for partial in folder.glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        for path in shard_files(folder):
            try:
                Shard.open(path)
            except UserError as error:
                print(f"{error}; made anew")
                path.unlink()
        if manifest is not was:
            manifest.write(folder)
    except OSError as error:
        raise UserError(f"output_dir={folder}: cannot be written: {error.strerror}") from error
    return manifest


def finish(folder: Path, manifest: Manifest, rows: Sequence[str]) -> Manifest:
    """List all shards in the manifest: the cache may be used.

    Args:
        rows: fingerprints of the datasets of which all rows are there.
    """
    files = {path.name: Shard.open(path).sizes() for path in shard_files(folder)}
    manifest = dataclasses.replace(manifest, files=files, rows=tuple(rows), finished=True)
    manifest.write(folder)
    return manifest


class CacheWriter:
    """Adds rows to a cache that :func:`begin` has made; several processes may, each its own.

    Args:
        shard_bytes: of records, after which a shard is closed.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._shard_bytes = folder, shard_bytes
        self._known = {bytes(digest) for path in shard_files(folder) for digest in Shard.open(path).digests}
        self._digests: list[bytes] = []
        self._rows: list[bytes] = []
        self._began = time.monotonic()

    def lacks(self, digests: Sequence[bytes]) -> bool:
        """Whether one of these rows is not there."""
        return not self._known.issuperset(digests)

    def add(self, digests: Sequence[bytes], rows: Sequence[bytes]) -> None:
        """Rows that are there already are left out.

        Args:
            rows: the encoded record of each.
        """
        for digest, row in zip(digests, rows, strict=True):
            if digest not in self._known:
                self._known.add(digest)
                self._digests.append(digest)
                self._rows.append(row)
        if sum(map(len, self._rows)) >= self._shard_bytes or time.monotonic() - self._began >= _SECONDS:
            self.close()

    def close(self) -> None:
        """Have all that was added on the disk.

        Raises:
            UserError: the disk is full, or fails.
        """
        if self._rows:
            try:
                retried("writing a shard", lambda: Shard.write(self._folder, self._digests, self._rows))
            except OSError as error:
                raise UserError(
                    f"output_dir={self._folder}: cannot be written: {error.strerror}; what was closed is there, and "
                    "the same command goes on"
                ) from error
        self._digests, self._rows, self._began = [], [], time.monotonic()
