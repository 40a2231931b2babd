"""What a teacher says about the supervised positions, in the forms that the loss can use."""

import dataclasses
from typing import Protocol

import torch

from distill_tune.losses.projection import Projection


class TeacherSignal(Protocol):
    """A teacher's logits for ``n`` supervised positions, asked for in chunks of rows.

    Attributes:
        vocab_size: v.
        softcap: as in :class:`~distill_tune.losses.projection.Projection`.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def softcap(self) -> float | None: ...

    def memory(self, rows: int) -> torch.Tensor | None:
        """What :meth:`logits` can write so many rows into; None where it needs none."""
        ...

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        """The logits of rows ``start`` to ``stop``, ``[stop - start, v]``; the loss may overwrite them."""
        ...


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """The teacher's last hidden states ``[n, d]`` and its output layer."""

    hidden: torch.Tensor
    projection: Projection

    @property
    def vocab_size(self) -> int:
        return self.projection.vocab_size

    @property
    def softcap(self) -> float | None:
        return self.projection.softcap

    def memory(self, rows: int) -> torch.Tensor | None:
        return self.projection.memory(rows, slot=1)

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad():
            return self.projection.logits(self.hidden[start:stop], memory)


@dataclasses.dataclass(frozen=True)
class DenseLogits:
    """Logits ``[n, v]`` that are there already, from a teacher that gives nothing else."""

    values: torch.Tensor
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.values.shape[1]

    def memory(self, rows: int) -> torch.Tensor | None:
        return None

    def logits(self, start: int, stop: int, memory: torch.Tensor | None) -> torch.Tensor:
        return self.values[start:stop].clone()
