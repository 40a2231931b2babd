"""A cache that processes read while they add to it, and its list of what is there."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from distill_tune import cache
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.disk import keep_to_oneself, release_lock
from distill_tune.errors import UserError
from distill_tune.training.distributed import wait_for_all


class GrowingCache:
    """A row's record is found from when this process has added it, or all have :meth:`flush`-ed what they added. What
    is added must not be there yet.

    Args:
        folder: of a cache that was begun.
        key: of a config that names it.
        is_added_to: by this process.
    """

    def __init__(self, folder: Path, key: str, is_added_to: bool) -> None:
        self._folder, self._is_outdated = folder, False
        # What is added is missing: to know what is there is the reader's part.
        self._writer = cache.CacheWriter(folder, key=key, goes_on="resume=auto", known=set()) if is_added_to else None
        self._reader = cache.CacheReader(folder, unfinished=True)

    def records(self, digests: Sequence[bytes]) -> dict[bytes, bytes | memoryview]:
        """Of those of these rows that are found."""
        pending: Mapping[bytes, bytes] = self._writer.pending if self._writer else {}
        own = {digest: pending[digest] for digest in digests if digest in pending}
        others = [digest for digest in digests if digest not in own]
        is_there = (self._reader.find(others) >= 0).tolist()
        if self._is_outdated and not all(is_there):
            self._reader, self._is_outdated = cache.CacheReader(self._folder, unfinished=True), False
            is_there = (self._reader.find(others) >= 0).tolist()
        there = list(itertools.compress(others, is_there))
        return dict(zip(there, self._reader.rows(there), strict=True)) | own

    def add(self, digests: Sequence[bytes], records: Sequence[bytes]) -> None:
        """
        Raises:
            UserError: the disk is full, or fails.
        """
        assert self._writer is not None
        self._writer.add(digests, records)
        self._is_outdated |= bool(digests) and not self._writer.pending  # a full shard was closed

    def close(self) -> None:
        """Have what this process has added on the disk.

        Raises:
            UserError: as :meth:`add`.
        """
        if self._writer is not None:
            self._is_outdated |= bool(self._writer.pending)
            self._writer.close()

    def flush(self) -> None:
        """Have what all have added on the disk, where it is found; all ranks call it."""
        self.close()
        wait_for_all()
        self._is_outdated = True


def list_shards(folder: Path, manifest: cache.Manifest, datasets: Sequence[TokenisedRows]) -> bool:
    """In the manifest of a cache that has all rows, which others may add to from then on.

    Returns:
        Whether it could be written, without which a run goes on as well.
    """
    try:
        cache.finish(folder, manifest, [rows.fingerprint for rows in datasets])
    except (OSError, UserError):
        return False
    finally:
        release_lock(folder)
    return True


def list_what_is_there(folder: Path, datasets: Sequence[TokenisedRows]) -> None:
    """The same where what wrote the last rows was killed before it did; unless another is writing there."""
    manifest = cache.Manifest.read(folder)
    if not cache.is_whole(folder, manifest):
        with contextlib.suppress(OSError):  # a folder that can only be read
            if keep_to_oneself(folder):
                list_shards(folder, manifest, datasets)
