"""What a teacher says about the supervised positions, in the forms that the loss can use."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch


class TeacherSignal(Protocol):
    """A teacher's logits for ``n`` supervised positions, asked for in chunks of rows."""

    def logits(self, start: int, stop: int) -> torch.Tensor:
        """The logits of rows ``start`` to ``stop``, ``[stop - start, v]``."""
        ...


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """The teacher's last hidden states ``[n, d]`` and its output projection ``[n, d] -> [n, v]``."""

    hidden: torch.Tensor
    project: Callable[[torch.Tensor], torch.Tensor]

    def logits(self, start: int, stop: int) -> torch.Tensor:
        with torch.no_grad():
            return self.project(self.hidden[start:stop])


@dataclasses.dataclass(frozen=True)
class DenseLogits:
    """Logits ``[n, v]`` that are there already, from a teacher that gives nothing else."""

    values: torch.Tensor

    def logits(self, start: int, stop: int) -> torch.Tensor:
        return self.values[start:stop]
