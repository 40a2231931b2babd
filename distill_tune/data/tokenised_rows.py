"""The rows of a dataset as flat tensors, and what is told of them."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy
import torch

from distill_tune.data.batch import Row
from distill_tune.data.datasets import IGNORE_INDEX


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
        num_cut: rows left out because ``max_seq_len`` cut their whole answer away.
        teacher: the same answers behind the teacher's own prompts, row for row, where it has such.
        teacher_ids: of each row, the number of the teacher that it follows, int32; None where all follow one.
        files: that the rows are from.
        origins: of each row, the number of its file and its own number there, ``[rows, 2]``, int32.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor
    packed: bool
    max_seq_len: int | None
    num_bad: int = 0
    num_cut: int = 0
    teacher: "TokenisedRows | None" = None
    teacher_ids: torch.Tensor | None = None
    files: tuple[str, ...] = ()
    origins: torch.Tensor | None = None

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
        )

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

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all tokens and labels."""
        digest = hashlib.sha256()
        for tensor in (self.tokens, self.labels, self.offsets, self.teacher_ids):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        if self.teacher is not None:
            digest.update(self.teacher.fingerprint.encode())
        return digest.hexdigest()[:16]


def describe_rows(datasets: Sequence[TokenisedRows]) -> str:
    """One line for the log: how many rows and tokens, and what was left out."""
    rows, tokens = sum(map(len, datasets)), sum(len(data.tokens) for data in datasets)
    supervised = sum(int(data.supervised.sum()) for data in datasets)
    line = f"{rows:,} rows, {tokens:,} tokens, {supervised:,} of them supervised"
    if bad := sum(data.num_bad for data in datasets):
        line += f"; {bad:,} bad rows left out"
    if cut := sum(data.num_cut for data in datasets):
        line += f"; {cut:,} rows left out whose answer max_seq_len cuts away"
    return line
