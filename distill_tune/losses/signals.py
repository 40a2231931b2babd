"""What a teacher says about the supervised positions, in the forms that the loss can use."""

import dataclasses
from typing import Protocol

import torch

from distill_tune.losses.projection import Projection


class TeacherSignal(Protocol):
    """A teacher's logits for ``n`` supervised positions, asked for in chunks of rows.

    Attributes:
        vocab_size: v.
        dtype: of the logits.
        softcap: as in :class:`~distill_tune.losses.projection.Projection`.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def softcap(self) -> float | None: ...

    def logits(self, start: int, stop: int, out: torch.Tensor) -> torch.Tensor:
        """The logits of rows ``start`` to ``stop``, ``[stop - start, v]``; ``out`` is memory that may be used."""
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
    def dtype(self) -> torch.dtype:
        return self.hidden.dtype

    @property
    def softcap(self) -> float | None:
        return self.projection.softcap

    def logits(self, start: int, stop: int, out: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.projection.logits(self.hidden[start:stop], out)


@dataclasses.dataclass(frozen=True)
class DenseLogits:
    """Logits ``[n, v]`` that are there already, from a teacher that gives nothing else."""

    values: torch.Tensor
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    def logits(self, start: int, stop: int, out: torch.Tensor) -> torch.Tensor:
        return self.values[start:stop]
