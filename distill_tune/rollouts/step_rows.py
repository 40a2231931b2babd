"""The rows of a step, wherever their answers come from: what a recipe's loop asks for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import Batch
from distill_tune.data.shape import Shape
from distill_tune.teachers import Teacher
from distill_tune.training.preparation import Steps

from torchtune.modules import TransformerDecoder

Say = Callable[[str], None]


class StepRows(NamedTuple):
    """
    Attributes:
        batches: this rank's micro-batches.
        num_supervised: tokens to be learned, on all ranks: what the step's summed losses are divided by.
        shape: of all rows, on all ranks.
        measured: of the answers that were written for this step, for its line of metrics.
    """

    batches: list[Batch]
    num_supervised: int
    shape: Shape
    measured: dict[str, float]


class RowsOfData:
    """Steps of the data's own answers."""

    def __init__(self, steps: Steps, teacher: Teacher) -> None:
        self._steps, self._teacher = steps, teacher

    def begin(self, student: TransformerDecoder, device: torch.device, step: int, run: Path) -> None:
        """Once the models have their weights, and ``step`` steps are taken.

        Args:
            run: the run's folder.
        """
        plan, steps_per_epoch, total_steps = self._steps.plan, self._steps.steps_per_epoch, self._steps.total_steps
        self._teacher.expect(plan.from_step(step, steps_per_epoch, total_steps))

    def of_step(self, step: int, say: Say) -> StepRows:
        """Of the step that follows ``step`` steps. All ranks call it."""
        plan, at = self._steps.plan, divmod(step, self._steps.steps_per_epoch)
        return StepRows(plan.micro_batches(*at), plan.num_supervised(*at), plan.shape(*at), {})

    # ---- For estimates

    @property
    def longest(self) -> int:
        """Tokens of the longest row, as student or teacher reads it."""
        return self._steps.plan.longest_read

    @property
    def largest_shapes(self) -> Sequence[Shape]:
        """As :attr:`StepPlan.largest_shapes`."""
        return self._steps.plan.largest_shapes

    def shapes(self, step: int) -> list[Shape]:
        """Of this rank's micro-batches in a step of the first epoch."""
        return self._steps.plan.shapes(0, step)

    def cache_bytes(self, rows: int, dtype: torch.dtype) -> float:
        """Of the keys and values that stay while the student trains.

        Args:
            rows: of a step, on each process.
            dtype: in which models compute.
        """
        return 0.0
