"""Writes a cache so that a kill at any moment loses no more than the shard that is being filled."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from distill_tune.cache.beside import OUTPUT_LAYER, damaged_beside, digests_beside
from distill_tune.cache.manifest import MANIFEST, Manifest
from distill_tune.cache.shard import Shard, shard_files
from distill_tune.disk import is_kept_by_another, keep_to_oneself, retried
from distill_tune.errors import UserError

SHARD_BYTES = 64 * 2**20
_SECONDS = 300  # after which a shard is closed though it is small: what a kill may cost a slow teacher


def begin(folder: Path, manifest: Manifest, key: str = "output_dir") -> Manifest:
    """Make a cache's folder, or go on with the one that is there, of the same teacher and settings.

    Args:
        key: of a config that names the folder.

    Returns:
        The manifest that is there now: of a cache that was finished, as it was, until :func:`finish` adds to it.

    Raises:
        UserError: it cannot be written, another run writes to it, or it is another cache, or no cache.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not keep_to_oneself(folder):
            raise _written_by_another(folder, key)
        was = cache_there(folder, key)
        if was is not None:
            require_same_teacher(was, manifest, f"{key}={folder}")
            manifest = was
        for partial in folder.glob(".*.partial"):  # of a run that was killed
            partial.unlink()
        for path in shard_files(folder):
            try:
                Shard.open(path)
            except UserError as error:
                print(f"{error}; made anew")
                path.unlink()
        for path in damaged_beside(folder, manifest):
            print(f"{path}: is damaged; made anew")
            path.unlink()
        if manifest is not was:
            (folder / OUTPUT_LAYER).unlink(missing_ok=True)  # of one that came to no row
            manifest.write(folder)
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written: {error.strerror}") from error
    return manifest


def require_free(folder: Path, key: str = "output_dir") -> None:
    """For a run that will :func:`begin`, before it reads its rows.

    Raises:
        UserError: another run is writing there.
    """
    if is_kept_by_another(folder):
        raise _written_by_another(folder, key)


def _written_by_another(folder: Path, key: str) -> UserError:
    return UserError(f"{key}={folder}: another run is writing there; wait for it, or name another")


def cache_there(folder: Path, key: str = "output_dir") -> Manifest | None:
    """The manifest of the cache in a folder; None of a new or empty folder, and of one that came to no row.

    Raises:
        UserError: the folder holds something else, or a manifest that cannot be read.
    """
    if (folder / MANIFEST).exists():
        return Manifest.read(folder) if shard_files(folder) else None
    if folder.exists() and (others := sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))):
        raise UserError(f"{key}={folder}: holds {others[0]}, and is no cache; name a new folder")
    return None


def require_same_teacher(was: Manifest, manifest: Manifest, told: str) -> None:
    """
    Args:
        told: key and value that name the cache.

    Raises:
        UserError: records of another teacher, or of other settings, are in a cache.
    """
    if differ := list(was.differences(manifest)):
        raise UserError("\n  ".join([f"{told}: holds another cache; set it back, or name another folder", *differ]))


def is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether a cache was finished with the very shards that are there: none is missing, none has come since."""
    return manifest.finished and manifest.files.keys() == {path.name for path in shard_files(folder)}


def finish(folder: Path, manifest: Manifest, rows: Sequence[str]) -> Manifest:
    """List all shards in the manifest: the cache may be used.

    Args:
        rows: fingerprints of the datasets of which all rows are there.
    """
    known = set[bytes]()
    files = {path.name: Shard.open(path).sizes(known) for path in shard_files(folder)}
    beside = digests_beside(folder)
    manifest = dataclasses.replace(manifest, files=files, beside=beside, rows=tuple(rows), finished=True)
    manifest.write(folder)
    return manifest


class CacheWriter:
    """Adds rows to a cache that :func:`begin` has made; several processes may, each its own. As a context manager it
    closes itself at the end, whatever ends it: what a teacher said before it was lost is kept.

    Args:
        shard_bytes: of records, after which a shard is closed.
        key: of a config that names the folder.
        goes_on: what does after the disk was full.
        known: digests of the rows that are there; default: those in the folder's shards.

    Attributes:
        pending: of each row that is not on the disk yet, its record.
    """

    def __init__(
        self,
        folder: Path,
        shard_bytes: int = SHARD_BYTES,
        key: str = "output_dir",
        goes_on: str = "the same command",
        known: set[bytes] | None = None,
    ) -> None:
        self._goes_on = goes_on
        self._folder, self._shard_bytes, self._told = folder, shard_bytes, f"{key}={folder}"
        if known is None:
            known = {bytes(digest) for path in shard_files(folder) for digest in Shard.open(path).digests}
        self._known = known
        self.pending: dict[bytes, bytes] = {}
        self._num_bytes = 0
        self._began = time.monotonic()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
                self.pending[digest] = row
                self._num_bytes += len(row)
        if self._num_bytes >= self._shard_bytes or time.monotonic() - self._began >= _SECONDS:
            self.close()

    def close(self) -> None:
        """Have all that was added on the disk.

        Raises:
            UserError: the disk is full, or fails.
        """
        if self.pending:
            digests, rows = list(self.pending), list(self.pending.values())
            try:
                retried("writing a shard", lambda: Shard.write(self._folder, digests, rows))
            except OSError as error:
                raise UserError(
                    f"{self._told}: cannot be written: {error.strerror}; what was closed is there, and "
                    f"{self._goes_on} goes on"
                ) from error
        self.pending, self._num_bytes, self._began = {}, 0, time.monotonic()
