"""A teacher of another tokenizer: its rows beside the student's, and which of them answer one another."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch

from distill_tune.losses.byte_moves import ByteMoves
from distill_tune.losses.divergences import Distribution
from distill_tune.losses.likelihoods import TokenLikelihoods
from distill_tune.losses.teacher_signal import TeacherSignal
from distill_tune.losses.token_groups import TokenGroups
from distill_tune.to_device import to_device


@dataclasses.dataclass(frozen=True)
class TokenClasses:
    """Both vocabularies by what their tokens have in common: classes 0 to ``num_classes - 1``, the last one the rest.

    Attributes:
        student: class of each of the student's tokens, ``[v_s]``, int64.
        teacher: class of each of the teacher's tokens, ``[v_t]``, int64.
        num_classes: the last one is the rest: tokens that have no counterpart.
        shared_student, shared_teacher: ids of the tokens with the same bytes in both, and of the control tokens that
            are each other's only counterpart, ``[m]`` each, int64.
    """

    student: torch.Tensor
    teacher: torch.Tensor
    num_classes: int
    shared_student: torch.Tensor
    shared_teacher: torch.Tensor

    @functools.cached_property
    def unshared_student(self) -> torch.Tensor:
        """Ids of the student's other tokens, ascending, int64."""
        return _others(self.student, self.shared_student)

    @functools.cached_property
    def unshared_teacher(self) -> torch.Tensor:
        """Ids of the teacher's other tokens, ascending, int64."""
        return _others(self.teacher, self.shared_teacher)

    @functools.cached_property
    def of_teacher_alone(self) -> torch.Tensor:
        """Ids of the teacher's tokens of classes that no token of the student's is of, int64."""
        return (torch.bincount(self.student, minlength=self.num_classes)[self.teacher] == 0).nonzero()[:, 0]

    def to(self, device: torch.device) -> "TokenClasses":
        student, teacher, shared_student, shared_teacher = (
            tensor.to(device) for tensor in (self.student, self.teacher, self.shared_student, self.shared_teacher)
        )
        return TokenClasses(student, teacher, self.num_classes, shared_student, shared_teacher)

    @functools.cached_property
    def of_student(self) -> TokenGroups:
        return TokenGroups.of(self.student, self.num_classes)

    @functools.cached_property
    def of_teacher(self) -> TokenGroups:
        return TokenGroups.of(self.teacher, self.num_classes)


@dataclasses.dataclass(frozen=True)
class AlignedPositions:
    """What n rows of the student have in common with the teacher's rows, all on one device.

    A row predicts a token y. T is the teacher's token that holds y's first byte; or the byte behind it, where that is a
    space which the teacher's text has not before T. In a part of the rows, teacher's rows are numbered from the part's
    first one.

    Attributes:
        at: the teacher's row that predicts T, ``[n]``, int64; 0 where it is not known.
        known: whether anything is, ``[n]``, bool; where not, a row has no divergence.
        boundary: whether y begins where T does, so that both rows ask for the next token behind the same bytes,
            ``[n]``, bool; False where not known.
        last: the teacher's row that predicts the token with y's last byte, ``[n]``, int64; 0 where not known.
        ends: whether y ends where that token does, so that what follows begins at a common boundary, ``[n]``, bool;
            False where not known.
        moves: what :class:`~distill_tune.losses.BytePrefixMass` needs besides; None where it is not asked.
    """

    at: torch.Tensor
    known: torch.Tensor
    boundary: torch.Tensor
    last: torch.Tensor
    ends: torch.Tensor
    moves: ByteMoves | None = None

    def __len__(self) -> int:
        return len(self.at)

    def to(self, device: torch.device) -> "AlignedPositions":
        """All but ``moves`` there, which stay on the CPU."""
        return dataclasses.replace(self, **{name: to_device(of, device) for name, of in self._of_rows().items()})  # type: ignore[arg-type]

    def among(self, rows: torch.Tensor, n: int) -> "AlignedPositions":
        """Of n rows, of which ``rows`` (ascending, int64, on the CPU) are these; nothing is known of the others."""

        spread = {name: of.new_zeros(n).index_copy_(0, rows, of) for name, of in self._of_rows().items()}
        moves = None if self.moves is None else self.moves.among(rows, n)
        return AlignedPositions(**spread, moves=moves)

    def _of_rows(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    def teacher_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For k = 0..n: the first teacher's row that rows k and later ask, and the end of those that earlier ones ask.

        ``[n + 1]`` each, int64, of positions on the CPU.
        """
        far = torch.iinfo(torch.int64).max
        later = self.at.masked_fill(~self.known, far).flip(0).cummin(0).values.flip(0) if len(self) else self.at
        earlier = (self.last + 1).masked_fill(~self.known, 0).cummax(0).values if len(self) else self.last
        return torch.cat([later, later.new_tensor([far])]), torch.cat([earlier.new_zeros(1), earlier])

    def cuts(self) -> torch.Tensor:
        """Whether rows may be cut before row k, for k = 0..n, ``[n + 1]``, bool, of positions on the CPU.

        At a common boundary, or where nothing is known on either side, so that each side has teacher's rows of its own.
        """
        first, end = self.teacher_rows()
        allowed = torch.ones(len(self) + 1, dtype=torch.bool)
        allowed[1:-1] = self.boundary[1:] | ~(self.known[1:] | self.known[:-1])
        return allowed & (end <= first)

    def cut(self, start: int, stop: int) -> tuple["AlignedPositions", int, int]:
        """Rows ``start`` to ``stop`` of positions on the CPU, and which of the teacher's rows they ask, from and to."""
        rows = slice(start, stop)
        at, known, last = self.at[rows], self.known[rows], self.last[rows]
        if not known.any():
            first = end = 0
        else:
            first, end = int(at[known].min()), int(last[known].max()) + 1
        at, last = ((asked - first).masked_fill(~known, 0) for asked in (at, last))
        moves = None if self.moves is None else self.moves[rows]
        return AlignedPositions(at, known, self.boundary[rows], last, self.ends[rows], moves), first, end


@dataclasses.dataclass(frozen=True)
class AlignedWord:
    """What a teacher of another tokenizer says about some rows of the student, which start at a common boundary.

    Attributes:
        logits: of its own rows, before any cap, ``[c_t, v_t]``; the loss may overwrite them. ``[c_t, 0]`` where there
            are ``log_probs`` in their place.
        targets: its own tokens there, ``[c_t]``, int64.
        positions: of the student's rows ``[c]``; ``at`` and ``last`` are rows of ``logits``. On their device when an
            :class:`AlignedMethod` gets it.
        classes: of both vocabularies, on the device of the logits.
        on_cpu: the same positions on the CPU, so that nothing waits for the device.
        log_probs: of ``targets`` at the temperature of the loss, ``[c_t]``, where no more is known; else None.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    positions: AlignedPositions
    classes: TokenClasses
    on_cpu: AlignedPositions
    log_probs: torch.Tensor | None = None

    def part(self, start: int, stop: int) -> "AlignedWord":
        """The word on some of its rows, between cuts."""
        positions, first, end = self.on_cpu.cut(start, stop)
        on_device = positions.to(self.logits.device)
        log_probs = None if self.log_probs is None else self.log_probs[first:end]
        logits, targets = self.logits[first:end], self.targets[first:end]
        return AlignedWord(logits, targets, on_device, self.classes, positions, log_probs)


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The signal of a teacher of another tokenizer: ``n_t`` rows of its own for ``n`` of the student's.

    Attributes:
        signal: the teacher's word on its own rows: :class:`~distill_tune.losses.HiddenStates`,
            :class:`~distill_tune.losses.DenseLogits`, or :class:`~distill_tune.losses.TokenLikelihoods` of ``targets``.
        targets: the teacher's tokens at these rows, ``[n_t]``, int64, on their device.
        positions: of the student's rows, on the CPU, where rows are cut.
        classes: of both vocabularies, on the device of the signal.
    """

    signal: TeacherSignal | TokenLikelihoods
    targets: torch.Tensor
    positions: AlignedPositions
    classes: TokenClasses

    @property
    def vocab_size(self) -> int:
        return self.signal.vocab_size

    @property
    def logits_per_row(self) -> int:
        return self.signal.logits_per_row

    @property
    def softcap(self) -> float | None:
        return self.signal.softcap

    def memory(self, rows: int, slot: int = 1) -> torch.Tensor | None:
        return self.signal.memory(rows, slot)

    def most_rows(self, pieces: Sequence[tuple[int, int]]) -> int:
        """Of the teacher's rows in any of some pieces of the student's."""
        asked = (self.positions.cut(start, stop)[1:] for start, stop in pieces)
        return max((end - first for first, end in asked), default=0)

    def among(self, rows: torch.Tensor, n: int) -> "Aligned":
        """See :meth:`AlignedPositions.among`."""
        return dataclasses.replace(self, positions=self.positions.among(rows, n))

    def word(self, start: int, stop: int, memory: torch.Tensor | None) -> AlignedWord:
        """On the student's rows ``start`` to ``stop``, between cuts; each of the teacher's rows is made once."""
        positions, first, end = self.positions.cut(start, stop)
        if isinstance(self.signal, TokenLikelihoods):
            log_probs = self.signal.log_probs[first:end]
            nothing = log_probs.new_empty(len(log_probs), 0)
            return AlignedWord(nothing, self.targets[first:end], positions, self.classes, positions, log_probs)
        logits = self.signal.logits(first, end, None if memory is None else memory[: end - first])
        return AlignedWord(logits, self.targets[first:end], positions, self.classes, positions)


class AlignedMethod(Protocol):
    """Compares a student's rows with those of a teacher of another tokenizer, and differentiates for the student.

    A ``kd_loss`` that does so says it by ``aligned = True``. Any other divergence is applied through
    :class:`~distill_tune.losses.BytePrefixMass`.
    """

    aligned: ClassVar[bool]

    def __call__(
        self, student: Distribution, teacher: Distribution, targets: torch.Tensor, word: AlignedWord
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            student: ``[c, v_s]`` at the temperature; its tensors may be overwritten.
            teacher: ``[c_t, v_t]`` at the temperature; its tensors may be overwritten.
            targets: the student's tokens ``[c]``.
            word: the rest; its ``logits`` have been overwritten by now.

        Returns:
            The divergence of each of the student's rows ``[c]``, 0 where nothing is known, and the gradient of their
            sum for the student's scaled logits ``[c, v_s]``.
        """
        ...


def _others(all_tokens: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(all_tokens).index_fill_(0, shared, 0).nonzero()[:, 0]
