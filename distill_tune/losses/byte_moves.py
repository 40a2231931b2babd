"""What byte-prefix mass needs of each row beyond the two rows that meet: small tensors on the CPU, cut as rows are."""

import dataclasses
from collections.abc import Sequence

import torch

NONE, WHOLE, CHAIN = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class TokenLists:
    """Lists of tokens, each token with a column.

    Attributes:
        ids: of each list its tokens, int32.
        columns: of each list the column of each of its tokens, int32; -1 for the rest.
    """

    ids: Sequence[torch.Tensor]
    columns: Sequence[torch.Tensor]

    def of(self, lists: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Some lists, ``[r]``, one or more, one after another: of each token its list (0..r-1), id and column, ``[t]``
        each, and where each list begins, ``[r]``; all int64."""
        chosen = lists.tolist()
        lengths = torch.tensor([len(self.ids[number]) for number in chosen])
        owner = torch.repeat_interleave(torch.arange(len(chosen)), lengths)
        ids, columns = (torch.cat([of[number] for number in chosen]).long() for of in (self.ids, self.columns))
        return owner, ids, columns, lengths.cumsum(0) - lengths


@dataclasses.dataclass(frozen=True)
class ByteMoves:
    """For n rows; y is the student's token, T the teacher's token that holds y's first byte.

    Attributes:
        share: how much of T's probability goes to y rather than to the column that T has by the bytes of T alone,
            ``[n]``: ``NONE``, ``WHOLE`` (y ends within T, and a longer token of the student's begins as T does) or
            ``CHAIN`` (y goes on beyond T: as much as the teacher gives what follows).
        to: the column of y: its class where the row is at a boundary, else its column among ``teacher_lists``; -1:
            none but its own. ``[n]``, int64.
        inside: of a row within T, the number of the list of the tokens that begin as T does up to y; else -1. ``[n]``,
            int64.
        rank: the place of T in that list, ``[n]``, int64.
        tail: of a ``CHAIN``, the number of the list in ``tails``: the tokens with which y may end. ``[n]``, int64.
        teacher_lists: tokens of the teacher that begin with the same bytes, by the column of what follows these bytes.
        student_lists: for each of them, tokens of the student by their column; those that are not in it are the rest.
        widths: how many columns each of them has, ``[m]``, int64.
        tails: tokens of the teacher; their columns are 0.
    """

    share: torch.Tensor
    to: torch.Tensor
    inside: torch.Tensor
    rank: torch.Tensor
    tail: torch.Tensor
    teacher_lists: TokenLists
    student_lists: TokenLists
    widths: torch.Tensor
    tails: TokenLists

    def __getitem__(self, rows: slice) -> "ByteMoves":
        return self._with(*(tensor[rows] for tensor in self._of_rows()))

    def among(self, rows: torch.Tensor, n: int) -> "ByteMoves":
        """See :meth:`AlignedPositions.among`; the other rows have no move."""
        return self._with(*(tensor.new_zeros(n).index_copy_(0, rows, tensor) for tensor in self._of_rows()))

    def _of_rows(self) -> tuple[torch.Tensor, ...]:
        return self.share, self.to, self.inside, self.rank, self.tail

    def _with(self, share, to, inside, rank, tail) -> "ByteMoves":  # type: ignore[no-untyped-def]
        return dataclasses.replace(self, share=share, to=to, inside=inside, rank=rank, tail=tail)
