"""Finds rows' records in a cache by what the rows contain."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy

from distill_tune.cache.beside import require_there
from distill_tune.cache.encoding import AnyEncoding, encoding_of
from distill_tune.cache.manifest import Manifest
from distill_tune.cache.shard import MADE_ANEW, MISSING, Shard, shard_files
from distill_tune.data.row_digest import DIGEST_BYTES
from distill_tune.errors import UserError


class CacheReader:
    """A finished cache. Shards are mapped: processes of a machine share what they read.

    Args:
        unfinished: take what is there by now of a cache that is being written, but shards that are cut short.

    Raises:
        UserError: there is none, it is not finished, or one of its files is missing or cut short.
    """

    def __init__(self, folder: Path, *, unfinished: bool = False) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        if not (self.manifest.finished or unfinished):
            raise UserError(f"{folder}: this cache is not finished; the command that began it goes on")
        try:
            self.encoding: AnyEncoding = encoding_of(self.manifest.kind, dict(self.manifest.settings))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder}: {error}") from error
        if unfinished:
            self._shards = list(_readable(folder))
        else:
            require_there(folder, self.manifest)
            self._shards = [self._open(name, sizes["bytes"]) for name, sizes in self.manifest.files.items()]
        digests = numpy.concatenate([numpy.zeros((0, DIGEST_BYTES), numpy.uint8), *(s.digests for s in self._shards)])
        halves = numpy.ascontiguousarray(digests).view(numpy.uint64)  # [rows, 2]
        order = numpy.lexsort((halves[:, 1], halves[:, 0]))
        self._halves, self._order = halves[order], order
        self._first_row = numpy.cumsum([0, *map(len, self._shards)])

    def _open(self, name: str, num_bytes: int) -> Shard:
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path}: {MISSING}")
        if (there := path.stat().st_size) != num_bytes:
            raise UserError(f"{path}: is damaged: it has {there:,} bytes, not {num_bytes:,}; {MADE_ANEW}")
        return Shard.open(path)

    def __len__(self) -> int:
        return len(self._order)

    def find(self, digests: Sequence[bytes]) -> numpy.ndarray:
        """The number of each row, ``[rows]``, int64; -1 of one that is not there."""
        places = self._places(digests)
        return numpy.where(places < 0, -1, self._order[places]) if len(self._order) else places

    def _places(self, digests: Sequence[bytes]) -> numpy.ndarray:
        """Of each row in the order of digests, ``[rows]``, int64; -1 of one that is not there."""
        wanted = numpy.frombuffer(b"".join(digests), numpy.uint64).reshape(-1, 2)
        at = numpy.searchsorted(self._halves[:, 0], wanted[:, 0])
        found = numpy.full(len(wanted), -1, numpy.int64)
        if len(self._halves) == 0:
            return found
        left = numpy.arange(len(wanted))
        # Once, but for digests of which the first half is the same.
        while len(left := left[at[left] < len(self._halves)]):
            here = self._halves[at[left]]
            is_it = (here == wanted[left]).all(-1)
            found[left[is_it]] = at[left[is_it]]
            left = left[~is_it & (here[:, 0] == wanted[left, 0])]
            at[left] += 1
        return found

    def content_of(self, digests: Sequence[bytes]) -> str:
        """SHA-256 of what is read for some rows, whatever their order, and whatever else the cache holds by now."""
        places = numpy.unique(self._places(digests))
        places = places[places >= 0]
        made = [self.manifest.kind, dict(self.manifest.settings), dict(self.manifest.teacher)]
        content = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
        content.update(numpy.ascontiguousarray(self._halves[places]).data)
        content.update(self._checksums[self._order[places]].data)
        return content.hexdigest()

    @functools.cached_property
    def _checksums(self) -> numpy.ndarray:
        """Of all rows, by number, int64."""
        return numpy.concatenate([numpy.zeros(0, numpy.int64), *(shard.checksums for shard in self._shards)])

    def rows(self, digests: Sequence[bytes]) -> list[memoryview]:
        """The encoded record of each row.

        Raises:
            KeyError: one is not there.
            UserError: one is damaged.
        """
        return [self._row(int(number)) for number in self.find(digests)]

    def _row(self, number: int) -> memoryview:
        if number < 0:
            raise KeyError("a row that the cache lacks")
        shard = int(numpy.searchsorted(self._first_row, number, side="right")) - 1
        return self._shards[shard].row(number - int(self._first_row[shard]))


def _readable(folder: Path) -> Iterator[Shard]:
    for path in shard_files(folder):
        with contextlib.suppress(UserError):
            yield Shard.open(path)
