"""Which rows make which step: a pure function of the data, the batch settings, the seed and the epoch."""

import dataclasses
import functools
import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

from distill_tune.counts import counted
from distill_tune.data.augmentation import Augmentations
from distill_tune.data.batch import Batch, Row, joined
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError


class StepPlan:
    """Cuts datasets into optimizer steps and those into micro-batches.

    A step takes ``batch_size * gradient_accumulation_steps`` sequences from each process; how they are cut into
    micro-batches changes no gradient, so they are dealt out evenly by their tokens, and to as few as have no more
    tokens, for student and teacher and to be learned, than a micro-batch of the longest sequences: a device must hold
    that one anyway, and short ones take as long to start. The last step of an epoch takes what is left, be it less: its
    loss is divided by its own supervised tokens. Nothing is remembered between calls but :attr:`limits`: a run resumes
    with these and the number of its step.

    Args:
        datasets: one or several.
        weights: each dataset's share of the sequences of an epoch; None takes every sequence once. With weights, an
            epoch has as many sequences as all datasets together; a dataset's are repeated or left out to fit.
        batch_size: sequences in a micro-batch; None with ``max_tokens_per_batch``.
        max_tokens_per_batch: instead, as many rows in a micro-batch as have so many tokens together. Which rows go
            together is drawn once; their order is new each epoch.
        gradient_accumulation_steps: micro-batches in a step, where its rows are among the longest.
        seed: of the order.
        shuffle: a new order each epoch, or the order of the files.
        augmentations: change the prompts of rows as they are taken.
        dataset_temperature: datasets without weights are taken by their sizes, and weights w as w ** (1 / T): 1 leaves
            them, more evens them out (arXiv 2010.11934, §3.1, has sizes and T = 1 / alpha). Only with several.
        rank, num_ranks: of the processes that share each step, which takes ``num_ranks`` times as many sequences.

    Attributes:
        limits: what :meth:`take_at_most` has found: tokens that a micro-batch of several sequences may have, read by
            the student, read by the teacher, and learned; None before.

    Raises:
        UserError: a row is longer than ``max_tokens_per_batch``; augmentations that cannot tell what they may change.
    """

    def __init__(
        self,
        datasets: Sequence[TokenisedRows],
        *,
        weights: Sequence[float] | None = None,
        batch_size: int | None = None,
        max_tokens_per_batch: int | None = None,
        gradient_accumulation_steps: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        augmentations: Augmentations | None = None,
        dataset_temperature: float | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._datasets = list(datasets)
        self._weights = weights
        if dataset_temperature is not None and len(datasets) > 1:
            shares = weights or [float(len(rows)) for rows in datasets]
            self._weights = [share ** (1 / dataset_temperature) for share in shares]
        self._augmentations = augmentations or Augmentations()
        self._max_tokens = max_tokens_per_batch
        self._batch_size = 1 if max_tokens_per_batch else batch_size or 1
        self._rank, self._num_ranks = rank, num_ranks
        self._accumulation = gradient_accumulation_steps
        self._seed, self._shuffle = seed, shuffle
        if max_tokens_per_batch and self.longest > max_tokens_per_batch:
            raise UserError(
                f"max_tokens_per_batch={max_tokens_per_batch}: the longest row has {self.longest} tokens; raise it, or "
                "cut the rows with tokenizer.max_seq_len"
            )
        for rows in self._datasets:
            self._augmentations.require_text(rows)
        # Sequence i has the rows self._rows[self._ends[i - 1] : self._ends[i]] of its dataset.
        self._orders = [self._row_order(rows) for rows in self._datasets]
        ends = [self._ends_of_sequences(rows, order) for rows, order in zip(self._datasets, self._orders, strict=True)]
        rows_before = numpy.cumsum([0, *map(len, self._orders)])
        self._rows = numpy.concatenate(self._orders)
        self._ends = numpy.concatenate([end + before for end, before in zip(ends, rows_before, strict=False)])
        self._first_sequence = numpy.cumsum([0, *map(len, ends)])
        self._order: tuple[int, numpy.ndarray] | None = None
        self.limits: list[int] | None = None

    @classmethod
    def of_teacher(cls, plans: "Sequence[StepPlan]", max_tokens: int) -> "StepPlan":
        """Every row of some plans once, as their teacher reads it, in the order of the files.

        A step is a micro-batch on each rank, of as many rows as have ``max_tokens`` tokens, or of one that has more.
        """
        rows = [of_dataset.as_teacher_reads for plan in plans for of_dataset in plan.datasets]
        most = max(max_tokens, *(int(of_dataset.lengths.max()) for of_dataset in rows))
        rank, num_ranks = plans[0]._rank, plans[0]._num_ranks
        return cls(rows, max_tokens_per_batch=most, shuffle=False, rank=rank, num_ranks=num_ranks)

    @property
    def datasets(self) -> Sequence[TokenisedRows]:
        return self._datasets

    @property
    def steps_per_epoch(self) -> int:
        """The last of them may be short."""
        return -(-len(self._ends) // self._step_size)

    @property
    def remarks(self) -> list[str]:
        """What a user may not have meant: an epoch that is no whole step."""
        if len(self._ends) >= self._step_size:
            return []
        processes = f" x {self._num_ranks} processes" if self._num_ranks > 1 else ""
        accumulation = f"gradient_accumulation_steps={self._accumulation}{processes}"
        if self._max_tokens:
            what, takes = "batch", f"max_tokens_per_batch={self._max_tokens}, {accumulation}"
        else:
            what = "packed sequence" if any(rows.packed for rows in self._datasets) else "row"
            takes = f"batch_size={self._batch_size} x {accumulation}"
        return [
            f"dataset: has {counted(len(self._ends), what)}, but one step takes {self._step_size} ({takes}): each "
            "epoch is one short step"
        ]

    @property
    def _step_size(self) -> int:
        return self._batch_size * self._accumulation * self._num_ranks

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which rows a step has; a run can only be resumed where this is the same."""
        return {
            "rows": sum(map(len, self._datasets)),
            "tokens": sum(len(rows.tokens) for rows in self._datasets),
            "content": [rows.fingerprint for rows in self._datasets],
            "sequences a step": self._step_size,
            "their factors": {
                "batch_size": self._batch_size,
                "gradient_accumulation_steps": self._accumulation,
                "processes": self._num_ranks,
            },
            "tokens a batch": self._max_tokens,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "weights": None if self._weights is None else [round(weight, 9) for weight in self._weights],
            "augmentations": self._augmentations.identity,
            "augmented text": [rows.fingerprint_of_text for rows in self._datasets] if self._augmentations else None,
        }

    @property
    def num_rows(self) -> int:
        return sum(map(len, self._datasets))

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(int(rows.lengths.max()) for rows in self._datasets)

    @property
    def largest_token(self) -> int:
        """The largest token of any row."""
        return max(rows.largest_token for rows in self._datasets)

    @property
    def used_tokens(self) -> numpy.ndarray:
        """The ids that occur in any row, sorted."""
        return functools.reduce(numpy.union1d, (rows.used_tokens for rows in self._datasets))

    @property
    def longest_of_teacher(self) -> int:
        """Tokens of the longest row as the teacher reads it."""
        return max(int((rows.teacher or rows).lengths.max()) for rows in self._datasets)

    @property
    def longest_read(self) -> int:
        """Tokens of the longest row, as the student or any teacher reads it."""
        return max(self.longest, *(int(rows.teacher_lengths.max()) for rows in self._datasets))

    def micro_batches(self, epoch: int, step: int) -> list[Batch]:
        """This rank's micro-batches of step ``step`` (from 0) of epoch ``epoch`` (from 0).

        As many as any other rank has; of a short step they may be fewer, and an empty one has one position, no target.
        """
        return [self._batch(sequences, epoch) for sequences in self._dealt(self._of_step(epoch, step))]

    def rows(self, epoch: int, step: int) -> list[Row]:
        """All rows of a step, on all ranks, in the order that is drawn, as the augmentations leave them."""
        return list(self._taken(self._of_step(epoch, step), epoch))

    def dealt(self, shape: Shape) -> list[numpy.ndarray]:
        """This rank's micro-batches of a step's rows that are not the datasets' own, by the numbers of their rows.

        As few as are within the limits, and as many as any other rank has; some may be empty.

        Args:
            shape: of the step's rows, on all ranks.
        """
        measures = [numpy.array(of_rows, numpy.int64) for of_rows in (shape.lengths, shape.most_read, shape.supervised)]
        return self._hands(numpy.arange(len(shape.lengths)), measures)[self._rank :: self._num_ranks]

    def hold(self, most: Sequence[int]) -> None:
        """Rows will come that are not the datasets' own: a micro-batch of several may have so many tokens.

        Args:
            most: read by the student, read by the teacher, and learned, as ``limits`` has them.
        """
        self._most_of_longest = list(most)

    def from_step(self, step: int, steps_per_epoch: int, total_steps: int) -> Iterator[Batch]:
        """This rank's micro-batches of a run from its step ``step`` on, each made when it is asked for."""
        for later in range(step, total_steps):
            yield from self.micro_batches(*divmod(later, steps_per_epoch))

    def num_supervised(self, epoch: int, step: int) -> int:
        """Supervised tokens in a step, on all ranks: what its summed losses are divided by."""
        return sum(int(rows.supervised[at].sum()) for rows, at in self._rows_of(self._of_step(epoch, step)))

    def shapes(self, epoch: int, step: int) -> list[Shape]:
        """Of this rank's micro-batches in a step."""
        return [self._shape(sequences) for sequences in self._dealt(self._of_step(epoch, step))]

    def shape(self, epoch: int, step: int) -> Shape:
        """Of all rows of a step, on all ranks, as the augmentations leave them."""
        if not self._augmentations:
            return self._shape(self._of_step(epoch, step))
        lengths = tuple(len(row.tokens) for row in self._taken(self._of_step(epoch, step), epoch))
        return dataclasses.replace(self._shape(self._of_step(epoch, step)), lengths=lengths)

    def record_keys(self, epoch: int, step: int) -> list[bytes]:
        """Of all rows of a step, on all ranks, as their files have them; a batch's are in another order."""
        rows_of_step = self._rows_of(self._of_step(epoch, step))
        found = ((rows.as_teacher_reads.record_keys, at.tolist()) for rows, at in rows_of_step)
        return [keys[row] for keys, at in found for row in at]

    @property
    def largest_shapes(self) -> list[Shape]:
        """Of any rank's micro-batches in the steps that the longest sequences would make, by what student and teacher
        read, and by what is learned: no step of any epoch has one that is larger in any of these.
        """
        return [self._shape(hand) for tokens in self._measures for hand in self._longest(tokens)]

    def take_at_most(self, batches: Sequence[Batch]) -> None:
        """From now on micro-batches are no larger than the largest of these, which the device could hold."""
        sizes = [(sum(of.lengths), sum(of.teacher_lengths), len(of.supervised_positions)) for of in batches]
        self.limits = [min(most, max(of)) for most, of in zip(self._most, zip(*sizes, strict=True), strict=True)]

    def origin(self, dataset: int, row: int) -> str:
        """The file and number of a row, as a batch's ``places`` have it."""
        return self._datasets[dataset].origin(row)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """Every sequence once, as for validation: this rank's micro-batches, as many as any other rank has.

        The last ones may be short; an empty one has one position and no target.
        """
        order, size = self._epoch_order(epoch), self._batch_size * self._num_ranks
        for start in range(0, len(order), size):
            for sequences in self._dealt(order[start : start + size]):
                yield self._batch(sequences, epoch)

    def _of_step(self, epoch: int, step: int) -> numpy.ndarray:
        return self._epoch_order(epoch)[step * self._step_size : (step + 1) * self._step_size]

    def _dealt(self, sequences: numpy.ndarray) -> list[numpy.ndarray]:
        """This rank's micro-batches."""
        return self._hands(sequences, self._measures)[self._rank :: self._num_ranks]

    def _hands(self, sequences: numpy.ndarray, measures: Sequence[numpy.ndarray]) -> list[numpy.ndarray]:
        """All ranks' micro-batches, as few as are within the limits.

        Args:
            measures: of each sequence, as :attr:`_measures` has them.
        """
        limits = list(zip(measures, self._most, strict=True))
        least = max(-(-int(tokens[sequences].sum()) // (most * self._num_ranks)) for tokens, most in limits)
        most_rounds = -(-len(sequences) // self._num_ranks)  # a sequence in each
        for rounds in range(max(1, least), most_rounds):
            hands = _dealt_out(sequences, measures[0], rounds * self._num_ranks)
            if all(int(tokens[hand].sum()) <= most for tokens, most in limits for hand in hands):
                return hands
        return _dealt_out(sequences, measures[0], most_rounds * self._num_ranks)

    def _longest(self, tokens: numpy.ndarray) -> list[numpy.ndarray]:
        """All ranks' micro-batches of a step of the longest sequences, ``batch_size`` in each."""
        longest_first = numpy.argsort(tokens, kind="stable")[::-1]
        sequences = numpy.repeat(longest_first, self._repeats[longest_first])[: self._step_size]
        rounds = -(-len(sequences) // (self._batch_size * self._num_ranks))
        return _dealt_out(sequences, tokens, rounds * self._num_ranks)

    def _epoch_order(self, epoch: int) -> numpy.ndarray:
        if self._order is None or self._order[0] != epoch:
            generator = numpy.random.Generator(numpy.random.PCG64([self._seed, epoch]))
            order = self._weighted(generator)
            self._order = (epoch, order[generator.permutation(len(order))] if self._shuffle else order)
        return self._order[1]

    def _weighted(self, generator: numpy.random.Generator) -> numpy.ndarray:
        """The sequences of an epoch, by number: all of them, or as many of each dataset as its weight asks for."""
        if self._weights is None:
            return numpy.arange(len(self._ends))
        taken = []
        for first, stop, wanted in zip(
            self._first_sequence, self._first_sequence[1:], self._taken_of_each, strict=False
        ):
            rounds = range(-(-int(wanted) // int(stop - first)))
            all_of_it = [
                first + (generator.permutation(stop - first) if self._shuffle else numpy.arange(stop - first))
                for _ in rounds
            ]
            taken.append(numpy.concatenate([numpy.arange(0), *all_of_it])[:wanted])
        return numpy.concatenate(taken)

    def _rows_of(self, sequences: Sequence[int] | numpy.ndarray) -> Iterator[tuple[TokenisedRows, numpy.ndarray]]:
        for sequence in sequences:
            dataset = int(numpy.searchsorted(self._first_sequence, sequence, side="right")) - 1
            start = self._ends[sequence - 1] if sequence else 0
            yield self._datasets[dataset], self._rows[start : self._ends[sequence]]

    @property
    def _most(self) -> list[int]:
        """Tokens that a micro-batch of several sequences may have, as ``limits`` has them."""
        return [min(of) for of in zip(self._most_of_longest, self.limits or self._most_of_longest, strict=True)]

    @functools.cached_property
    def _most_of_longest(self) -> list[int]:
        return [max(int(tokens[hand].sum()) for hand in self._longest(tokens)) for tokens in self._measures]

    @functools.cached_property
    def _taken_of_each(self) -> numpy.ndarray:
        """Sequences of each dataset in an epoch; rounded so that its length does not change with the weights."""
        sizes = numpy.diff(self._first_sequence)
        if self._weights is None:
            return sizes
        shares = numpy.cumsum([0.0, *self._weights]) / sum(self._weights)
        return numpy.diff(numpy.rint(shares * sizes.sum()).astype(int))

    @functools.cached_property
    def _repeats(self) -> numpy.ndarray:
        """How often an epoch may take each sequence."""
        sizes = numpy.diff(self._first_sequence)
        return numpy.repeat(-(-self._taken_of_each // sizes), sizes)

    @functools.cached_property
    def _measures(self) -> list[numpy.ndarray]:
        """Of each sequence the tokens that the student reads, that the teacher reads, and that are learned."""
        counts = [rows.teacher_lengths for rows in self._datasets], [rows.supervised for rows in self._datasets]
        return [self._tokens, *map(self._of_sequences, counts)]

    @functools.cached_property
    def _tokens(self) -> numpy.ndarray:
        """Of each sequence."""
        return self._of_sequences([rows.lengths for rows in self._datasets])

    def _of_sequences(self, counts: Sequence[numpy.ndarray]) -> numpy.ndarray:
        """What is counted of each dataset's rows, added up in each sequence."""
        in_order = [of_dataset[order] for of_dataset, order in zip(counts, self._orders, strict=True)]
        return numpy.add.reduceat(numpy.concatenate(in_order), [0, *self._ends[:-1]])

    def _shape(self, sequences: numpy.ndarray) -> Shape:
        rows = list(self._rows_of(sequences))

        def taken(values: Callable[[TokenisedRows], Any]) -> tuple[int, ...]:
            found = [(values(of_dataset), at) for of_dataset, at in rows]
            return tuple(int(value) for all_values, at in found if all_values is not None for value in all_values[at])

        def read_by(number: int) -> Shape:
            return Shape(
                taken(lambda rows: rows.others[number].lengths), taken(lambda rows: rows.others[number].supervised)
            )

        return Shape(
            taken(lambda rows: rows.lengths),
            taken(lambda rows: rows.supervised),
            taken(lambda rows: rows.teacher and rows.teacher.lengths),
            taken(lambda rows: rows.teacher_ids),
            tuple(map(read_by, range(len(self._datasets[0].others)))),
        )

    def _batch(self, sequences: numpy.ndarray, epoch: int) -> Batch:
        return joined(list(self._taken(sequences, epoch)))

    def _taken(self, sequences: numpy.ndarray, epoch: int) -> Iterator[Row]:
        """The rows of some sequences, changed by the augmentations."""
        for rows, at in self._rows_of(sequences):
            for row in map(int, at):
                place = (self._datasets.index(rows), row)
                taken = rows[row]._replace(place=place)
                yield self._augmentations(taken, (epoch, *place)) if self._augmentations else taken

    def _row_order(self, rows: TokenisedRows) -> numpy.ndarray:
        if self._max_tokens and self._shuffle:
            return numpy.random.Generator(numpy.random.PCG64([self._seed])).permutation(len(rows))
        return numpy.arange(len(rows))

    def _ends_of_sequences(self, rows: TokenisedRows, order: numpy.ndarray) -> numpy.ndarray:
        """After which rows of ``order`` a sequence ends: after each, or after as many as have so many tokens."""
        capacity = self._max_tokens or (rows.max_seq_len if rows.packed else None)
        if capacity is None:
            return numpy.arange(1, len(rows) + 1)
        tokens = numpy.cumsum(rows.lengths[order])
        ends, used = [0], 0
        while ends[-1] < len(order):
            ends.append(max(ends[-1] + 1, int(numpy.searchsorted(tokens, used + capacity, side="right"))))
            used = int(tokens[ends[-1] - 1])
        return numpy.array(ends[1:])


def _dealt_out(sequences: numpy.ndarray, tokens: numpy.ndarray, hands: int) -> list[numpy.ndarray]:
    """So many micro-batches, about as many tokens in each: the longest first, each to where the fewest are."""
    if hands == 1:
        return [sequences]
    dealt: list[list[int]] = [[] for _ in range(hands)]
    loads = [(0, hand) for hand in range(hands)]
    for sequence in sequences[numpy.argsort(tokens[sequences], kind="stable")[::-1]].tolist():
        load, hand = loads[0]
        dealt[hand].append(sequence)
        heapq.heapreplace(loads, (load + int(tokens[sequence]), hand))
    return [numpy.array(hand, int) for hand in dealt]


def num_supervised(batches: Sequence[Batch]) -> int:
    """Supervised tokens in some micro-batches."""
    return sum(len(batch.supervised_positions) for batch in batches)
