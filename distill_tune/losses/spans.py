"""Spans of text that a student's and a teacher's tokens both write, from one common boundary to the next."""

import dataclasses

import torch

from distill_tune.losses.aligned import AlignedPositions
from distill_tune.to_device import to_device


@dataclasses.dataclass(frozen=True)
class Spans:
    """Which rows make each of m spans, all int64.

    Attributes:
        first: the student's row that a span begins with, ``[m]``, ascending.
        first_of_teacher: the teacher's row, ``[m]``.
        of_student: the span of each of the student's rows, ``[c]``; m where it is in none.
        of_teacher: the span of each of the teacher's rows, ``[c_t]``; m where it is in none.
    """

    first: torch.Tensor
    first_of_teacher: torch.Tensor
    of_student: torch.Tensor
    of_teacher: torch.Tensor

    def __len__(self) -> int:
        return len(self.first)

    def to(self, device: torch.device) -> "Spans":
        return Spans(**{name: to_device(tensor, device) for name, tensor in vars(self).items()})


def spans_of(positions: AlignedPositions, num_teacher_rows: int) -> Spans:
    """Those of positions on the CPU.

    A span is left out where a token of it is not known, or does not go on in the teacher's token where the one before
    it ends: one that begins with a space before the teacher's text, or of another answer.
    """
    c = len(positions)
    row = torch.arange(c)
    stop = _next(positions.ends, row)[:-1]  # the row with the span's last token
    goes_on = positions.known & (positions.boundary | (positions.at == positions.last.roll(1)))
    unknown = torch.cat([goes_on.logical_not().cumsum(0), torch.full((1,), c + 1)])
    is_whole = positions.boundary & (stop < _next(positions.boundary, row)[1:]) & (unknown[stop] == unknown[:-1])
    first = is_whole.nonzero()[:, 0]
    first_of_teacher, stop = positions.at[first], stop[first]

    def numbered(rows: torch.Tensor, begin: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        span = torch.searchsorted(begin, rows, right=True) - 1
        is_within = (span >= 0) & (rows <= torch.cat([last, last.new_zeros(1)])[span])
        return torch.where(is_within, span, len(begin))

    return Spans(
        first,
        first_of_teacher,
        numbered(row, first, stop),
        numbered(torch.arange(num_teacher_rows), first_of_teacher, positions.last[stop]),
    )


def sums_of_spans(values: torch.Tensor, span: torch.Tensor, num_spans: int) -> torch.Tensor:
    """Sums of ``values`` over the rows of each span, ``[m]``, float64.

    In float64 the order of adding does not show in what is made of them.
    """
    return values.new_zeros(num_spans + 1, dtype=torch.float64).index_add_(0, span, values.double())[:-1]


def _next(marked: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """The next row that is marked, from each row itself on, ``[c + 1]``; c where there is none."""
    c = len(row)
    ahead = torch.where(marked, row, c).flip(0).cummin(0).values.flip(0) if c else row
    return torch.cat([ahead, ahead.new_full((1,), c)])
