"""Several teachers: one distribution from all, a divergence from each, or one teacher a row."""

import hashlib
import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import Batch
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError
from distill_tune.losses import Divergence, MixtureOfTeachers, SumOfTeachers, TeacherOfEachRow, TokenWeight
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder


class SeveralTeachers(Teacher):
    """
    Args:
        teachers: each of any kind.
        weights: of each, as in the config; here they are made to add up to 1.
        names: of each; rows choose by them in ``by_row``.
        combination: ``mixture``: the student follows sum_i w_i p_i; ``sum``: the loss is sum_i w_i D(p_i, q);
            ``by_row``: each row follows the teacher that its column ``teacher_id`` names.
    """

    def __init__(
        self, teachers: Sequence[Teacher], weights: Sequence[float], names: Sequence[str], combination: str
    ) -> None:
        self._teachers, self.combination = list(teachers), combination
        self._weights = [weight / sum(weights) for weight in weights]
        self._all_names = tuple(names)
        if combination == "by_row":
            self.names = self._all_names
        self.may_be_lost = any(teacher.may_be_lost for teacher in self._teachers)
        self.tokens_of_student = max(teacher.tokens_of_student for teacher in self._teachers)
        self.answers_new_rows = all(teacher.answers_new_rows for teacher in self._teachers)
        self.shares_tokenizer = any(teacher.shares_tokenizer for teacher in self._teachers)
        others = {id(other): other for teacher in self._teachers for other in teacher.other_tokenizers}
        self.other_tokenizers = list(others.values())

    @property
    def teachers(self) -> Sequence[Teacher]:
        return self._teachers

    def with_teachers(self, teachers: Sequence[Teacher]) -> "SeveralTeachers":
        """The same with others in their places."""
        return SeveralTeachers(teachers, self._weights, self._all_names, self.combination)

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        known = [teacher.check(student, checkpoint, tokenizer) for teacher in self._teachers]
        self.folders = list(itertools.chain.from_iterable(teacher.folders for teacher in self._teachers))
        self.files = list(itertools.chain.from_iterable(teacher.files for teacher in self._teachers))
        self._find_content()
        self.other_tokens = {index: told for one in self._teachers for index, told in one.other_tokens.items()}
        self.models = list(itertools.chain.from_iterable(teacher.models for teacher in self._teachers))
        return min((size for size in known if size is not None), default=None)

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        for teacher in self._teachers:
            teacher.require_rows(longest, used_tokens)

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        if self.combination == "mixture" and self.other_tokenizers:
            raise UserError(
                "teacher_combination=mixture: makes one distribution over the same tokens, and not all teachers have "
                "the tokenizer of the rows; take sum, or by_row"
            )
        kinds = [teacher.record_kind for teacher in self._teachers]
        if self.combination == "by_row" and len(set(kinds)) > 1:
            each = (f"{name}: {kind or 'none'}" for name, kind in zip(self._all_names, kinds, strict=True))
            raise UserError(
                f"teacher_combination=by_row: records of one teacher need records of the same kind of each other "
                f"({', '.join(each)}); take one kind for all, or kind hidden, which goes with any"
            )
        for teacher in self._teachers:
            teacher.require_loss(divergence, token_weight, temperature, self.combination)

    def require_signals(self, datasets: Sequence[TokenisedRows], augmented: bool, number: int | None = None) -> None:
        for own, teacher in enumerate(self._teachers):
            teacher.require_signals(datasets, augmented, own if self.combination == "by_row" else None)
        self._find_content()

    def _find_content(self) -> None:
        if any(contents := [teacher.content for teacher in self._teachers]):
            self.content = hashlib.sha256(" ".join(contents).encode()).hexdigest()

    def each(self, shape: Shape) -> list[tuple[Teacher, Shape]]:
        rows_of = shape.following if self.combination == "by_row" else lambda number: shape
        found = [teacher.each(rows_of(number)) for number, teacher in enumerate(self._teachers)]
        return list(itertools.chain.from_iterable(found))

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        for teacher in self._teachers:
            teacher.load(student, device, shard=shard, compile=compile)

    def expect(self, batches: Iterator[Batch]) -> None:
        copies = itertools.tee(batches, len(self._teachers))
        for number, (teacher, copy) in enumerate(zip(self._teachers, copies, strict=True)):
            teacher.expect(map(operator.methodcaller("rows_of_teacher", number), copy) if self.names else copy)

    def lost(self, batches: Sequence[Batch]) -> str | None:
        for number, teacher in enumerate(self._teachers):
            own = [batch.rows_of_teacher(number) for batch in batches] if self.names else batches
            if reason := teacher.lost(own):
                return reason
        return None

    def __call__(self, batch: Batch) -> Any:
        if self.combination == "by_row":
            return self._of_each_row(batch)
        signals = [teacher(batch) for teacher in self._teachers]
        combined = MixtureOfTeachers if self.combination == "mixture" else SumOfTeachers
        return combined(signals, self._weights)

    def _of_each_row(self, batch: Batch) -> TeacherOfEachRow:
        signals, owned = [], []
        owners = batch.teacher_of_supervised()  # [n], on the CPU
        for number, teacher in enumerate(self._teachers):
            # Also where no row is its own: of sharded teachers every rank has to run each.
            signals.append(teacher(batch.rows_of_teacher(number)))
            owned.append((owners == number).nonzero()[:, 0])
        return TeacherOfEachRow(signals, owned)

    def release(self) -> None:
        for teacher in self._teachers:
            teacher.release()

    def after_step(self) -> None:
        for teacher in self._teachers:
            teacher.after_step()

    def state(self) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{parameter}": value
            for name, teacher in zip(self._all_names, self._teachers, strict=True)
            for parameter, value in teacher.state().items()
        }

    def restored(self) -> None:
        for teacher in self._teachers:
            teacher.restored()
