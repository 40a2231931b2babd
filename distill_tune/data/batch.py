"""One micro-batch: tokens, what to predict, and who may attend to whom."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch

from distill_tune.alignment.columns import AT, LAST
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.data.row_digest import record_keys, row_digest
from distill_tune.data.shape import longest_of_each
from distill_tune.models.packed_rows import PackedRows
from distill_tune.to_device import to_device


class Row(NamedTuple):
    """A row's tokens ``[s]`` and labels ``[s]``, -100 where nothing is to be learned; labels ``[s + 1]`` have that of a
    token, too, that is predicted and not read.

    ``teacher_tokens`` and ``teacher_labels`` are the same answer behind the teacher's own prompt, where it has one;
    ``teacher_id`` is the number of the teacher that the row follows; ``place`` the dataset's number and its own there;
    ``is_text`` says which tokens are a turn's own text, where that is known; ``likeliest`` are the tokens that the
    student holds likeliest at each position that is learned, ``[n, j]``, where the teacher is to tell of these as well;
    ``is_own`` says that the student has written the answer. ``others`` are the same row as teachers of other tokenizers
    read it; in one of these ``alignment`` says where the student's supervised tokens lie in it, ``[n_s, 6]``, int32,
    the columns those of :mod:`distill_tune.alignment.columns`.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    teacher_tokens: torch.Tensor | None = None
    teacher_labels: torch.Tensor | None = None
    teacher_id: int = 0
    place: tuple[int, int] = (0, 0)
    is_text: torch.Tensor | None = None
    likeliest: torch.Tensor | None = None
    is_own: bool = False
    others: "tuple[Row, ...]" = ()
    alignment: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows one after another in one sequence, without padding; none sees another.

    Attributes:
        tokens: ``[1, s]``, int64.
        targets: the token that follows each position, ``[1, s]``, int64; -100 where nothing is to be learned.
        supervised_positions: which positions carry a target, ``[n]``, int64, ascending.
        lengths: of the rows; they add up to ``s``.
        num_supervised: of each row; they add up to ``n``.
        learned: the targets at the supervised positions, ``[n]``, int64, on the CPU wherever the batch is.
        teacher: the same answers behind the teacher's own prompts, where it has such; as many supervised positions.
        teacher_ids: of each row, the number of the teacher that it follows.
        places: of each row, its dataset's number and its own in it.
        digests: of each row, 16 bytes of what the teacher reads, tokens and which of them are learned.
        likeliest: tokens that the student holds likeliest at each supervised position, ``[n, j]``, int64, on the CPU,
            where the teacher is to tell of these as well.
        num_own_rows: so many rows, the first ones, have answers that the student has written itself.
        others: the same rows as teachers of other tokenizers read them, one for each tokenizer.
        alignments: in one of these, of each row, where the student's supervised tokens lie in it; on the CPU.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    supervised_positions: torch.Tensor
    lengths: tuple[int, ...]
    num_supervised: tuple[int, ...]
    learned: torch.Tensor
    teacher: "Batch | None" = None
    teacher_ids: tuple[int, ...] = ()
    places: tuple[tuple[int, int], ...] = ()
    digests: tuple[bytes, ...] = ()
    likeliest: torch.Tensor | None = None
    num_own_rows: int = 0
    others: "tuple[Batch, ...]" = ()
    alignments: tuple[torch.Tensor, ...] = ()

    @property
    def num_own(self) -> int:
        """Supervised positions of answers that the student has written itself, which come first."""
        return sum(self.num_supervised[: self.num_own_rows])

    @property
    def for_teacher(self) -> "Batch":
        """What the teacher reads."""
        if self.teacher is None or self.likeliest is None:
            return self.teacher or self
        return dataclasses.replace(self.teacher, likeliest=self.likeliest)

    @property
    def as_teacher_reads(self) -> "Batch":
        """What a single teacher is asked: the same rows by its own tokenizer, where that is another."""
        return self.others[0] if self.others else self

    def read_by(self, number: int) -> "Batch":
        """What teachers of one of the other tokenizers read; without rows, one position and no target."""
        return self.others[number] if self.others else joined(()).to(self.tokens.device)

    @functools.cached_property
    def alignment(self) -> torch.Tensor:
        """Where the student's supervised tokens lie among those of this batch, ``[n, 6]``, int32, on the CPU."""
        found = [torch.zeros(0, 6, dtype=torch.int32)]
        before = itertools.accumulate(self.num_supervised, initial=0)
        for of_row, start in zip(self.alignments, before, strict=False):
            is_covered = of_row[:, AT] >= 0
            found.append(of_row.clone())
            for column in (AT, LAST):
                found[-1][:, column] += start * is_covered
        return torch.cat(found)

    @property
    def teacher_lengths(self) -> tuple[int, ...]:
        """The most tokens of each row that a teacher reads."""
        return longest_of_each(of.lengths for of in (self.teacher, *self.others) if of is not None) or self.lengths

    @functools.cached_property
    def record_keys(self) -> tuple[bytes, ...]:
        """Of each row; see :func:`~distill_tune.data.row_digest.record_keys`."""
        return record_keys(self.digests, self.teacher_ids) if self.digests else ()

    @property
    def supervised(self) -> NoReturn:
        """What recipes copied before read."""
        raise AttributeError(
            "batch.supervised is gone, a mask [1, s]; write batch.supervised_positions, the positions [n] themselves: "
            "hidden[0, batch.supervised_positions]"
        )

    def to(self, device: torch.device) -> "Batch":
        return dataclasses.replace(
            self,
            tokens=to_device(self.tokens, device),
            targets=to_device(self.targets, device),
            supervised_positions=to_device(self.supervised_positions, device),
            teacher=None if self.teacher is None else self.teacher.to(device),
            others=tuple(of_tokenizer.to(device) for of_tokenizer in self.others),
        )

    def attention(self) -> dict[str, Any]:
        """Arguments for the model's forward: each token's position in its row, and the rows' bounds as a mask."""
        return self._attention

    @functools.cached_property
    def _attention(self) -> dict[str, Any]:
        rows = PackedRows(self.lengths, self.tokens.device)
        return {"input_pos": rows.positions, "mask": rows}

    def teacher_of_supervised(self) -> torch.Tensor:
        """The number of each supervised position's teacher, ``[n]``, on the CPU."""
        return torch.tensor(self.teacher_ids).repeat_interleave(torch.tensor(self.num_supervised))

    def rows_of_teacher(self, number: int) -> "Batch":
        """The rows that follow this teacher; without such, one position and no target."""
        own = [row for row, teacher in enumerate(self.teacher_ids) if teacher == number]
        if not own:
            return joined(()).to(self.tokens.device)
        return dataclasses.replace(self.of_rows(own), teacher_ids=(0,) * len(own))

    def halves(self) -> "list[Batch]":
        """The batch as two, of about as many tokens; a single row as it is."""
        if len(self.lengths) < 2:
            return [self]
        total, end, taken = sum(self.lengths), 1, self.lengths[0]
        while end < len(self.lengths) - 1 and taken + self.lengths[end] <= total / 2:
            taken, end = taken + self.lengths[end], end + 1
        return [self.of_rows(rows) for rows in (range(end), range(end, len(self.lengths)))]

    def of_rows(self, rows: Sequence[int]) -> "Batch":
        """Some of its rows, by their numbers, ascending; at least one."""
        tokens, targets = (x[0].split(list(self.lengths)) for x in (self.tokens, self.targets))
        supervised, learned = (x.split(list(self.num_supervised)) for x in (self.supervised_positions, self.learned))
        likeliest = None if self.likeliest is None else self.likeliest.split(list(self.num_supervised))
        # Where the rows began, and where they will.
        before = [0, *itertools.accumulate(self.lengths)]
        after = [0, *itertools.accumulate(self.lengths[row] for row in rows)]
        return Batch(
            torch.cat([tokens[row] for row in rows])[None],
            torch.cat([targets[row] for row in rows])[None],
            torch.cat([supervised[row] + (start - before[row]) for row, start in zip(rows, after, strict=False)]),
            tuple(self.lengths[row] for row in rows),
            tuple(self.num_supervised[row] for row in rows),
            torch.cat([learned[row] for row in rows]),
            None if self.teacher is None else self.teacher.of_rows(rows),
            tuple(self.teacher_ids[row] for row in rows) if self.teacher_ids else (),
            tuple(self.places[row] for row in rows) if self.places else (),
            tuple(self.digests[row] for row in rows) if self.digests else (),
            None if likeliest is None else torch.cat([likeliest[row] for row in rows]),
            sum(row < self.num_own_rows for row in rows),
            tuple(of_tokenizer.of_rows(rows) for of_tokenizer in self.others),
            tuple(self.alignments[row] for row in rows) if self.alignments else (),
        )


def joined(rows: Sequence[Row | tuple[torch.Tensor, torch.Tensor]]) -> Batch:
    """Rows of tokens and labels as a batch; without rows, one position and no target.

    Args:
        rows: those that the student has written before others.
    """
    nothing = torch.zeros(1, dtype=torch.int32)
    all_rows = [Row(*row) for row in rows] or [Row(nothing, torch.full_like(nothing, IGNORE_INDEX))]
    # A row's last position has nothing to predict, but for a token that is not read.
    targets = [
        torch.cat([row.labels[1:], row.labels.new_full((1,), IGNORE_INDEX)])[: len(row.tokens)] for row in all_rows
    ]
    of_teacher = [
        Row(row.teacher_tokens, row.teacher_labels)
        for row in all_rows
        if row.teacher_tokens is not None and row.teacher_labels is not None
    ]
    is_learned = [of_row != IGNORE_INDEX for of_row in targets]
    likeliest = [row.likeliest for row in all_rows if row.likeliest is not None]
    teacher = joined(of_teacher) if of_teacher else None
    return Batch(
        torch.cat([row.tokens for row in all_rows]).long()[None],
        torch.cat(targets).long()[None],
        torch.cat(is_learned).nonzero()[:, 0],
        tuple(len(row.tokens) for row in all_rows),
        tuple(int(of_row.sum()) for of_row in is_learned),
        torch.cat(targets)[torch.cat(is_learned)].long(),
        teacher,
        tuple(row.teacher_id for row in all_rows),
        tuple(row.place for row in all_rows) if rows else (),
        teacher.digests if teacher else tuple(map(_digest, all_rows)) if rows else (),
        torch.cat(likeliest).long() if likeliest else None,
        sum(row.is_own for row in all_rows),
        tuple(map(joined, zip(*(row.others for row in all_rows), strict=True))),
        tuple(row.alignment for row in all_rows if row.alignment is not None),
    )


def _digest(row: Row) -> bytes:
    return row_digest(row.tokens.numpy(), row.labels.numpy() != IGNORE_INDEX)
