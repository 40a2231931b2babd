"""What the loss asks of a teacher that has logits."""

from typing import Protocol

import torch


class TeacherSignal(Protocol):
    """A teacher's logits for ``n`` supervised positions, asked for in chunks of rows.

    Attributes:
        vocab_size: v.
        logits_per_row: how many logits there are of a row while it is made.
        softcap: as in :class:`~distill_tune.losses.projection.Projection`.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def logits_per_row(self) -> int: ...
    @property
    def softcap(self) -> float | None: ...

    def memory(self, rows: int, slot: int = 1) -> torch.Tensor | None:
        """What :meth:`logits` can write so many rows into; None where it needs none.

        Args:
            slot: of the teacher, from 1, where several are there at the same time.
        """
        ...

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        """The logits of rows ``start`` to ``stop``, ``[stop - start, v]``; the loss may overwrite them."""
        ...
