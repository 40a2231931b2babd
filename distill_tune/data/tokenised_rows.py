"""The rows of a dataset as flat tensors, and what is told of them."""

import dataclasses
import functools
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy
import torch

from distill_tune.counts import counted
from distill_tune.data.batch import Row
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.data.row_digest import record_keys, row_digest


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedRows:
    """The rows of one dataset as flat tensors.

    Attributes:
        tokens: of all rows, one after another, int32.
        labels: the same tokens, -100 where nothing is to be learned, int32.
        offsets: where each row begins, and the end, ``[rows + 1]``, int64.
        packed: rows share a sequence.
        max_seq_len: the bound at which rows were cut and up to which they are packed.
        num_bad: rows left out because they could not be used.
        faults: of the first of them: file, number, and why.
        num_cut: rows left out because ``max_seq_len`` cut their whole answer away.
        num_shortened: rows that ``max_seq_len``, or the teacher's, cut and that are kept.
        num_without_end: those of them that were cut within what is learned: its end is not taught.
        num_tokens_cut: tokens that were cut from these rows.
        num_empty: answers of rows that are not learned since they are empty.
        num_unfinished: rows whose answer was cut when it was made: it is taught without an end.
        dropped: what the chat template does not write, such as reasoning: in how many rows.
        unread: columns of rows and keys of turns that nobody reads: in how many rows.
        teacher: the same answers behind the teacher's own prompts, row for row, where it has such.
        teacher_ids: of each row, the number of the teacher that it follows, int32; None where all follow one.
        files: that the rows are from.
        origins: of each row, the number of its file and its own number there, ``[rows, 2]``, int32.
        is_text: which tokens are a turn's own text, not what is written around it, bool; None where that is not known.
        others: the same rows as teachers of other tokenizers read them, row for row, one for each tokenizer.
        alignment: of one of these, where the student's supervised tokens lie in it.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor
    packed: bool
    max_seq_len: int | None
    num_bad: int = 0
    faults: Sequence[str] = ()
    num_cut: int = 0
    num_shortened: int = 0
    num_without_end: int = 0
    num_tokens_cut: int = 0
    num_empty: int = 0
    num_unfinished: int = 0
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unread: Mapping[str, int] = dataclasses.field(default_factory=dict)
    teacher: "TokenisedRows | None" = None
    teacher_ids: torch.Tensor | None = None
    files: tuple[str, ...] = ()
    origins: torch.Tensor | None = None
    is_text: torch.Tensor | None = None
    others: "tuple[TokenisedRows, ...]" = ()
    alignment: "AlignedRows | None" = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Row:
        start, stop = self.offsets[row], self.offsets[row + 1]
        of_teacher = None if self.teacher is None else self.teacher[row]
        teacher_id = 0 if self.teacher_ids is None else int(self.teacher_ids[row])
        return Row(
            self.tokens[start:stop],
            self.labels[start:stop],
            None if of_teacher is None else of_teacher.tokens,
            None if of_teacher is None else of_teacher.labels,
            teacher_id,
            is_text=None if self.is_text is None else self.is_text[start:stop],
            others=tuple(of_tokenizer[row] for of_tokenizer in self.others),
            alignment=None if self.alignment is None else self.alignment[row],
        )

    def with_fingerprint(self, known: str) -> "TokenisedRows":
        """The same rows, of which :attr:`fingerprint` need not be worked out again."""
        same = dataclasses.replace(self)
        same.__dict__["fingerprint"] = known
        return same

    def first(self, count: int) -> "TokenisedRows":
        """The first rows alone; what is told of those that were left out stays."""
        if count >= len(self):
            return self
        end = int(self.offsets[count])
        return dataclasses.replace(
            self,
            tokens=self.tokens[:end],
            labels=self.labels[:end],
            offsets=self.offsets[: count + 1],
            teacher=None if self.teacher is None else self.teacher.first(count),
            teacher_ids=None if self.teacher_ids is None else self.teacher_ids[:count],
            origins=None if self.origins is None else self.origins[:count],
            is_text=None if self.is_text is None else self.is_text[:end],
            others=tuple(of_tokenizer.first(count) for of_tokenizer in self.others),
            alignment=None if self.alignment is None else self.alignment.first(count),
        )

    @functools.cached_property
    def as_teacher_reads(self) -> "TokenisedRows":
        """The same rows behind the teacher's own prompts, or by its own tokenizer, where it has such."""
        return next((self._told_as(rows) for rows in (self.teacher, *self.others) if rows is not None), self)

    def read_by(self, number: int) -> "TokenisedRows":
        """The same rows as teachers of one of the other tokenizers read them."""
        return self._told_as(self.others[number])

    def _told_as(self, read: "TokenisedRows") -> "TokenisedRows":
        return dataclasses.replace(read, teacher_ids=self.teacher_ids, files=self.files, origins=self.origins)

    def origin(self, row: int) -> str:
        """File and number of a row, as a user would look it up."""
        if self.origins is None:
            return f"row {row + 1}"
        file, number = self.origins[row].tolist()
        return f"{self.files[file]}, row {number}"

    @functools.cached_property
    def lengths(self) -> numpy.ndarray:
        """Tokens of each row."""
        return self.offsets.diff().numpy()

    @functools.cached_property
    def teacher_lengths(self) -> numpy.ndarray:
        """The most tokens of each row that a teacher reads."""
        read = [rows.lengths for rows in (self.teacher, *self.others) if rows is not None]
        return functools.reduce(numpy.maximum, read) if read else self.lengths

    @functools.cached_property
    def largest_token(self) -> int:
        """Of all rows, those that the teacher reads included."""
        return max(int(rows.tokens.max()) for rows in (self, self.teacher) if rows is not None)

    @functools.cached_property
    def used_tokens(self) -> numpy.ndarray:
        """The ids that occur, sorted, those that the teacher reads included."""
        occurs = numpy.zeros(self.largest_token + 1, bool)
        for rows in (self, self.teacher):
            if rows is not None:
                occurs[rows.tokens.numpy()] = True
        return occurs.nonzero()[0]

    @functools.cached_property
    def supervised(self) -> numpy.ndarray:
        """Tokens to be learned in each row; its first token is never predicted."""
        learned = (self.labels != IGNORE_INDEX).numpy()
        starts = self.offsets[:-1].numpy()
        return numpy.add.reduceat(learned, starts, dtype=numpy.int64) - learned[starts]

    @property
    def learned(self) -> numpy.ndarray:
        """The tokens that are learned, of all rows."""
        is_learned = (self.labels != IGNORE_INDEX).numpy()
        is_learned[self.offsets[:-1].numpy()] = False  # a row's first is never predicted
        return self.tokens.numpy()[is_learned]

    @functools.cached_property
    def last_learned(self) -> numpy.ndarray:
        """The last token that is learned of each row that has any, ``[rows]``."""
        learned = (self.labels != IGNORE_INDEX).nonzero()[:, 0].numpy()
        last = learned[numpy.searchsorted(learned, self.offsets[1:].numpy()[self.supervised > 0]) - 1]
        return self.tokens.numpy()[last]

    @functools.cached_property
    def digests(self) -> tuple[bytes, ...]:
        """Of each row what its teacher reads, as a batch's ``digests`` have it."""
        if self.teacher is not None:
            return self.teacher.digests
        tokens, learned = self.tokens.numpy(), (self.labels != IGNORE_INDEX).numpy()
        ends = self.offsets.tolist()
        return tuple(row_digest(tokens[start:end], learned[start:end]) for start, end in itertools.pairwise(ends))

    @functools.cached_property
    def record_keys(self) -> tuple[bytes, ...]:
        """Of each row, as a batch's ``record_keys`` have it."""
        return self.digests if self.teacher_ids is None else record_keys(self.digests, self.teacher_ids.tolist())

    @functools.cached_property
    def fingerprint_of_text(self) -> str | None:
        """Of which tokens are a turn's own text."""
        return None if self.is_text is None else hashlib.sha256(self.is_text.numpy().data).hexdigest()[:16]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all tokens and labels."""
        digest = hashlib.sha256()
        for tensor in (self.tokens, self.labels, self.offsets, self.teacher_ids):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        for rows in (self.teacher, *self.others):
            if rows is not None:
                digest.update(rows.fingerprint.encode())
        if self.alignment is not None:
            digest.update(self.alignment.positions.contiguous().numpy().data)
        return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedRows:
    """Where the student's supervised tokens lie in some rows as a teacher of another tokenizer reads them.

    Attributes:
        positions: of all rows, ``[n, 6]``, int32; the columns are those of :mod:`distill_tune.alignment.columns`.
        offsets: where each row begins, and the end, ``[rows + 1]``, int64.
        num_bytes: of the answers.
        num_masked_bytes: those of them that no token of the teacher's is found for: no divergence is taken there.
    """

    positions: torch.Tensor
    offsets: torch.Tensor
    num_bytes: int
    num_masked_bytes: int

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.positions[self.offsets[row] : self.offsets[row + 1]]

    def first(self, count: int) -> "AlignedRows":
        end = int(self.offsets[count])
        return dataclasses.replace(self, positions=self.positions[:end], offsets=self.offsets[: count + 1])


def describe_rows(datasets: Sequence[TokenisedRows], are_prompts: bool = False) -> str:
    """For the log: how many rows and tokens, and what was left out; a line more for what of the rows is not read.

    Args:
        are_prompts: their answers are written anew.
    """
    rows, tokens = sum(map(len, datasets)), sum(len(data.tokens) for data in datasets)
    supervised = sum(int(data.supervised.sum()) for data in datasets)
    line = f"{counted(rows, 'row')}, {counted(tokens, 'token')}, "
    line += "prompts whose answers are written anew" if are_prompts else f"{supervised:,} of them supervised"
    if bad := sum(data.num_bad for data in datasets):
        line += f"; {counted(bad, 'bad row')} left out"
    if cut := sum(data.num_cut for data in datasets):
        line += f"; {counted(cut, 'row')} left out whose answer max_seq_len cuts away"
    if shortened := sum(data.num_shortened for data in datasets):
        bounds = {data.max_seq_len for data in datasets if data.num_shortened}
        at = f"max_seq_len={bounds.pop()}" if len(bounds) == 1 and None not in bounds else "max_seq_len"
        without_end = sum(data.num_without_end for data in datasets)
        lost = sum(data.num_tokens_cut for data in datasets)
        line += f"; {counted(shortened, 'row')} cut at {at} ({counted(lost, 'token')})"
        line += f", {without_end:,} of them without their end"
    if empty := sum(data.num_empty for data in datasets):
        line += f"; {counted(empty, 'empty answer')}, not learned"
    if unfinished := sum(data.num_unfinished for data in datasets):
        line += f"; {counted(unfinished, 'answer')} cut when made, learned without an end"
    for read in zip(*(data.others for data in datasets), strict=True):
        aligned = [rows.alignment for rows in read if rows.alignment is not None]
        if masked := sum(rows.num_masked_bytes for rows in aligned):
            share = masked / sum(rows.num_bytes for rows in aligned)
            line += (
                f"; {counted(masked, 'byte')} of the answers ({share:.2%}) not found in the teacher's: no divergence"
            )
    if asking := sum(int((data.supervised == 0).sum()) for data in datasets):
        line += f"; {counted(asking, 'prompt')} without an answer"
    lines = [line]
    if dropped := _added(data.dropped for data in datasets):
        lines.append(f"the chat template does not write, so it is not learned: {dropped}")
    if unread := _added(data.unread for data in datasets):
        lines.append(f"nobody reads: {unread}")
    return "\n".join(lines)


def _added(counts: Iterable[Mapping[str, int]]) -> str:
    added = sum(map(Counter, counts), Counter())
    return ", ".join(f"{name} (in {counted(count, 'row')})" for name, count in added.items())
