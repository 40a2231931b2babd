"""Rows about which a teacher is yet to be asked, and in which batches it is."""

from collections.abc import Collection, Iterable, Iterator

from distill_tune.data.batch import Batch


class MissingRows:
    """A row is asked about in one batch: that in which a teacher that works ahead expects it, whatever needs it first.

    Args:
        digests: of all of them, the same on all ranks.
        of_steps: of the rows that the steps read.
    """

    def __init__(self, digests: Collection[bytes] = (), of_steps: frozenset[bytes] = frozenset()) -> None:
        self._digests, self._of_steps = set(digests), of_steps
        self._batches: dict[bytes, Batch] = {}  # of this rank, by row

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._digests

    @property
    def num_of_steps(self) -> int:
        return len(self._digests & self._of_steps)

    @property
    def has_any_of_steps(self) -> bool:
        return not self._digests.isdisjoint(self._of_steps)

    def expected(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """In what the teacher will be asked about rows of the batches to come, beside what it expects already."""
        for batch in batches:
            if (new := self._new(batch)) is not None:
                yield new
            elif not any(digest in self._of_steps and digest not in self._batches for digest in self._digests):
                return

    def asked_for(self, batches: Iterable[Batch]) -> list[Batch]:
        """In what to ask about rows of these batches, as it is expected where it is."""
        asked = dict[int, Batch]()
        for batch in batches:
            self._new(batch)
            of_rows = (self._batches.get(digest) for digest in batch.record_keys)
            asked |= {id(one): one for one in of_rows if one is not None}
        return list(asked.values())

    def _new(self, batch: Batch) -> Batch | None:
        """Those of its rows that are in no other batch yet, each once."""
        rows = dict[bytes, int]()
        for row, digest in enumerate(batch.record_keys):
            if digest in self._digests and digest not in self._batches:
                rows.setdefault(digest, row)
        if not rows:
            return None
        new = batch.of_rows(list(rows.values()))
        self._batches |= dict.fromkeys(rows, new)
        return new

    def forget(self, batch: Batch) -> None:
        """One that was asked for; where that has failed, its rows may come in another the next time."""
        for digest in batch.record_keys:
            del self._batches[digest]

    def remove(self, digests: Iterable[bytes]) -> None:
        """They have been asked about, on whichever rank."""
        self._digests.difference_update(digests)
