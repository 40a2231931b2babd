"""What byte-prefix mass needs of each row beyond the two rows that meet: small tensors on the CPU, cut as rows are."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from distill_tune.to_device import to_device

NONE, WHOLE, CHAIN = 0, 1, 2


class ListedTokens(NamedTuple):
    """Lists one after another, on a device, int64: of each token its list, id and column, ``[t]`` each, and where each
    list begins, ``[r]``."""

    owner: torch.Tensor
    ids: torch.Tensor
    columns: torch.Tensor
    starts: torch.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class TokenLists:
    """Lists of tokens, each token with a column.

    Attributes:
        ids: of each list its tokens, int32, on the CPU.
        columns: of each list the column of each of its tokens, int32; -1 for the rest.
    """

    ids: Sequence[torch.Tensor]
    columns: Sequence[torch.Tensor]
    _moved: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = dataclasses.field(default_factory=dict, repr=False)

    def of(self, lists: torch.Tensor, device: torch.device) -> ListedTokens:
        """Some lists, ``[r]``, int64, on the CPU, one or more; any of them more than once."""
        length, total = self.lengths[lists], int(self.lengths[lists].sum())
        offsets = self.lengths.cumsum(0) - self.lengths
        starts = length.cumsum(0) - length
        owner = torch.repeat_interleave(to_device(length, device), output_size=total)
        here = to_device(offsets[lists] - starts, device)[owner] + torch.arange(total, device=device)
        ids, columns = self._on(device)
        return ListedTokens(owner, ids[here].long(), columns[here].long(), to_device(starts, device))

    @functools.cached_property
    def lengths(self) -> torch.Tensor:
        """How many tokens each list has, ``[m]``, int64."""
        return torch.tensor([len(tokens) for tokens in self.ids], dtype=torch.int64)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """All lists there, moved once."""
        if device not in self._moved:
            ids, columns = (to_device(torch.cat(list(of)), device) for of in (self.ids, self.columns))
            self._moved[device] = ids, columns
        return self._moved[device]


@dataclasses.dataclass(frozen=True)
class ByteMoves:
    """For n rows; y is the student's token, T the teacher's token that holds y's first byte.

    Attributes:
        share: how much of T's probability goes to y rather than to the column that T has by the bytes of T alone,
            ``[n]``: ``NONE``, ``WHOLE`` (y ends within T, and a longer token of the student's begins as T does) or
            ``CHAIN`` (y goes on beyond T: as much as the teacher gives what follows).
        to: the column of y: its class where the row is at a boundary, else its column among ``teacher_lists``; -1:
            none but its own. ``[n]``, int64.
        inside: of a row within T, the number of the list of the tokens that begin as T does up to y; of one with a
            space before T, that of all tokens; else -1. ``[n]``, int64.
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
        return self._with_each(lambda tensor: tensor[rows])

    def among(self, rows: torch.Tensor, n: int) -> "ByteMoves":
        """See :meth:`AlignedPositions.among`; the other rows have no move."""
        return self._with_each(lambda tensor: tensor.new_zeros(n).index_copy_(0, rows, tensor))

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "ByteMoves":
        return dataclasses.replace(
            self,
            share=change(self.share),
            to=change(self.to),
            inside=change(self.inside),
            rank=change(self.rank),
            tail=change(self.tail),
        )
