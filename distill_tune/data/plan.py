"""Which rows make which step: a pure function of the data, the batch settings, the seed and the epoch."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch

from distill_tune.data.batch import Batch, packed, padded
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.data.prepare import TokenisedRows
from distill_tune.errors import UserError

Unit = tuple[int, tuple[int, ...]]  # a dataset, and the rows of it that share a sequence


class StepPlan:
    """Cuts datasets into optimizer steps and those into micro-batches.

    A step takes ``batch_size * gradient_accumulation_steps`` sequences; how they are cut into micro-batches changes no
    gradient. Rows that do not fill a last step of an epoch are left for the next epoch's order to reach. Nothing is
    remembered between calls: a run resumes with the number of its step.

    Args:
        datasets: one or several.
        weights: each dataset's share of the sequences of an epoch; None takes every sequence once. With weights, an
            epoch has as many sequences as all datasets together; a dataset's are repeated or left out to fit.
        batch_size: sequences in a micro-batch.
        gradient_accumulation_steps: micro-batches in a step.
        seed: of the order.
        shuffle: a new order each epoch, or the order of the files.
        rank, num_ranks: of the processes that share each step, which takes ``num_ranks`` times as many sequences.
    """

    def __init__(
        self,
        datasets: Sequence[TokenisedRows],
        *,
        weights: Sequence[float] | None = None,
        batch_size: int,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._datasets = list(datasets)
        self._weights = weights
        self._batch_size = batch_size
        self._rank, self._num_ranks = rank, num_ranks
        self._step_size = batch_size * gradient_accumulation_steps * num_ranks
        self._seed, self._shuffle = seed, shuffle
        self._units = [_units(rows, index) for index, rows in enumerate(self._datasets)]
        self._units_per_epoch = sum(map(len, self._units))
        self._order: tuple[int, list[Unit]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """
        Raises:
            UserError: the data does not fill one step.
        """
        if self._units_per_epoch < self._step_size:
            what = "packed sequences" if any(rows.packed for rows in self._datasets) else "rows"
            accumulation = self._step_size // self._batch_size // self._num_ranks
            processes = f" x {self._num_ranks} processes" if self._num_ranks > 1 else ""
            raise UserError(
                f"dataset: has {self._units_per_epoch} {what}, but one step takes {self._step_size} (batch_size="
                f"{self._batch_size} x gradient_accumulation_steps={accumulation}{processes}); lower one of them"
            )
        return self._units_per_epoch // self._step_size

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which rows a step has; a run can only be resumed where this is the same."""
        return {
            "rows": sum(map(len, self._datasets)),
            "tokens": sum(len(rows.tokens) for rows in self._datasets),
            "content": [rows.fingerprint for rows in self._datasets],
            "sequences a step": self._step_size,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(
            sum(self._datasets[index].length(row) for row in rows) for units in self._units for index, rows in units
        )

    def micro_batches(self, epoch: int, step: int) -> list[Batch]:
        """This rank's micro-batches of step ``step`` (from 0) of epoch ``epoch`` (from 0)."""
        return list(self._of_this_rank(self._units_of_step(epoch, step)))

    def num_supervised(self, epoch: int, step: int) -> int:
        """Supervised tokens in a step, on all ranks: what its summed losses are divided by."""
        units = self._units_of_step(epoch, step)
        return sum(self._datasets[index].supervised_in(row) for index, rows in units for row in rows)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Every sequence once, as for validation: this rank's micro-batches, as many as any other rank has.

        The last ones may be short; an empty one has one position and no target.
        """
        return self._of_this_rank(self._epoch_order(epoch))

    def _units_of_step(self, epoch: int, step: int) -> list[Unit]:
        return self._epoch_order(epoch)[step * self._step_size : (step + 1) * self._step_size]

    def _of_this_rank(self, units: Sequence[Unit]) -> Iterator[Batch]:
        for start in range(0, len(units), self._batch_size * self._num_ranks):
            at = start + self._rank * self._batch_size
            yield self._batch(units[at : at + self._batch_size])

    def _epoch_order(self, epoch: int) -> list[Unit]:
        if self._order is None or self._order[0] != epoch:
            generator = numpy.random.Generator(numpy.random.PCG64([self._seed, epoch]))
            units = [unit for units in self._weighted(generator) for unit in units]
            if self._shuffle:
                units = [units[at] for at in generator.permutation(len(units))]
            self._order = (epoch, units)
        return self._order[1]

    def _weighted(self, generator: numpy.random.Generator) -> list[list[Unit]]:
        if self._weights is None:
            return self._units
        taken = []
        for units, weight in zip(self._units, self._weights, strict=True):
            count = round(self._units_per_epoch * weight / sum(self._weights))
            at: list[int] = []
            while len(at) < count:
                at += generator.permutation(len(units)).tolist() if self._shuffle else range(len(units))
            taken.append([units[index] for index in at[:count]])
        # Rounding may leave the epoch a sequence short or long; its length must not change with that.
        last = taken[-1] or self._units[-1]
        missing = self._units_per_epoch - sum(map(len, taken))
        taken[-1] = taken[-1] + last[:missing] if missing >= 0 else taken[-1][:missing]
        return taken

    def _batch(self, units: Sequence[Unit]) -> Batch:
        if not units:
            return padded([(torch.zeros(1, dtype=torch.int32), torch.full((1,), IGNORE_INDEX, dtype=torch.int32))])
        rows: list[Any] = [[self._datasets[index][row] for row in rows] for index, rows in units]
        if any(self._datasets[index].packed for index, _ in units):
            return packed(rows)
        return padded([row for (row,) in rows])


def _units(rows: TokenisedRows, dataset: int) -> list[Unit]:
    """Each row alone, or rows in their order packed into sequences of at most ``rows.max_seq_len`` tokens."""
    if not rows.packed:
        return [(dataset, (row,)) for row in range(len(rows))]
    assert rows.max_seq_len is not None
    units: list[Unit] = []
    pack: list[int] = []
    space = rows.max_seq_len
    for row in range(len(rows)):
        length = rows.length(row)
        if length > space and pack:
            units.append((dataset, tuple(pack)))
            pack, space = [], rows.max_seq_len
        pack.append(row)
        space -= length
    return [*units, (dataset, tuple(pack))] if pack else units


def num_supervised(batches: Sequence[Batch]) -> int:
    """Supervised tokens in some micro-batches."""
    return int(sum(torch.count_nonzero(batch.supervised) for batch in batches))
