"""One micro-batch: tokens, what to predict, and who may attend to whom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.models.packed_rows import PackedRows

Row = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows one after another in one sequence, without padding; none sees another.

    Attributes:
        tokens: ``[1, s]``, int64.
        targets: the token that follows each position, ``[1, s]``, int64; -100 where nothing is to be learned.
        lengths: of the rows; they add up to ``s``.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[int, ...]

    @property
    def supervised(self) -> torch.Tensor:
        """Which positions carry a target, ``[1, s]``, bool."""
        return self.targets != IGNORE_INDEX

    def to(self, device: torch.device) -> "Batch":
        return dataclasses.replace(
            self,
            tokens=self.tokens.to(device, non_blocking=True),
            targets=self.targets.to(device, non_blocking=True),
        )

    def attention(self) -> dict[str, Any]:
        """Arguments for the model's forward: each token's position in its row, and the rows' bounds as a mask."""
        rows = PackedRows(self.lengths, self.tokens.device)
        return {"input_pos": rows.positions, "mask": rows}


def joined(rows: Sequence[Row]) -> Batch:
    """Rows of tokens and labels as a batch; without rows, one position and no target."""
    rows = rows or [(torch.zeros(1, dtype=torch.int32), torch.full((1,), IGNORE_INDEX, dtype=torch.int32))]
    # A row's last position has nothing to predict.
    targets = [torch.cat([labels[1:], labels.new_full((1,), IGNORE_INDEX)]) for _, labels in rows]
    return Batch(
        torch.cat([tokens for tokens, _ in rows]).long()[None],
        torch.cat(targets).long()[None],
        tuple(len(tokens) for tokens, _ in rows),
    )
