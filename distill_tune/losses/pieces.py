"""How rows are cut into pieces that fit a budget; where teachers have tokenizers of their own, at common boundaries."""

from collections.abc import Sequence

import torch

from distill_tune.losses.aligned import AlignedPositions


def even_pieces(n: int, rows: int) -> list[tuple[int, int]]:
    """n rows, ``rows`` at a time, from and to."""
    return [(start, min(start + rows, n)) for start in range(0, n, rows)]


def pieces_between_cuts(
    n: int, bytes_per_row: int, aligned: Sequence[tuple[AlignedPositions, int]], budget: int
) -> list[tuple[int, int]]:
    """Pieces of about the same size, from and to, cut where all the teachers allow it.

    Where no cut is within the budget a piece is longer, up to the next one.

    Args:
        bytes_per_row: of the student's rows, and of what else comes with each of them.
        aligned: of each teacher with its own tokenizer where its rows are, and the bytes of each of its rows.
    """
    if n == 0:
        return []
    size = torch.arange(n + 1) * bytes_per_row
    allowed = torch.ones(n + 1, dtype=torch.bool)
    for positions, of_teacher in aligned:
        size = size + positions.teacher_rows()[1] * of_teacher
        allowed &= positions.cuts()
    at = allowed.nonzero()[:, 0]
    size = size[at]
    total = int(size[-1])
    even = -(-total // max(1, -(-total // budget)))
    pieces, first = [], 0
    while first < len(at) - 1:
        # Not far from an even share, and, but for a first cut beyond it, within the budget.
        most = min(int(size[first]) + max(even + even // 8, bytes_per_row), int(size[first]) + budget)
        end = max(first + 1, int(torch.searchsorted(size, most, right=True)) - 1)
        pieces.append((int(at[first]), int(at[end])))
        first = end
    return pieces
