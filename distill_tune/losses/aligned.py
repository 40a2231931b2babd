"""A teacher of another tokenizer: its rows beside the student's, and which of them answer one another."""

import dataclasses
import functools
from typing import ClassVar, Protocol

import torch

from distill_tune.losses.divergences import Distribution
from distill_tune.losses.signals import TeacherSignal
from distill_tune.to_device import to_device


@dataclasses.dataclass(frozen=True)
class TokenClasses:
    """Both vocabularies by what their tokens have in common: classes 0 to ``num_classes - 1``, the last one the rest.

    Attributes:
        student: class of each of the student's tokens, ``[v_s]``, int64.
        teacher: class of each of the teacher's tokens, ``[v_t]``, int64.
        num_classes: the last one is the rest: tokens that have no counterpart.
        shared_student, shared_teacher: ids of the tokens with the same bytes in both, ``[m]`` each, int64.
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


@dataclasses.dataclass(frozen=True)
class AlignedPositions:
    """What n rows of the student have in common with the teacher's rows, all on one device.

    A row predicts a token y. T is the teacher's token that holds y's first byte. In a part of the rows, teacher's rows
    are numbered from the part's first one.

    Attributes:
        at: the teacher's row that predicts T, ``[n]``, int64; 0 where it is not known.
        known: whether anything is, ``[n]``, bool; where not, a row has no divergence.
        boundary: whether y begins where T does, so that both rows ask for the next token behind the same bytes,
            ``[n]``, bool; False where not known.
        last: the teacher's row that predicts the token with y's last byte, ``[n]``, int64; 0 where not known.
        ends: whether y ends where that token does, so that what follows begins at a common boundary, ``[n]``, bool;
            False where not known.
    """

    at: torch.Tensor
    known: torch.Tensor
    boundary: torch.Tensor
    last: torch.Tensor
    ends: torch.Tensor

    def __len__(self) -> int:
        return len(self.at)

    def to(self, device: torch.device) -> "AlignedPositions":
        return dataclasses.replace(self, **{name: to_device(tensor, device) for name, tensor in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class AlignedWord:
    """What a teacher of another tokenizer says about some rows of the student, which start at a common boundary.

    Attributes:
        logits: of its own rows, before any cap, ``[c_t, v_t]``; the loss may overwrite them.
        targets: its own tokens there, ``[c_t]``, int64.
        positions: of the student's rows ``[c]``; ``at`` and ``last`` are rows of ``logits``. On their device when an
            :class:`AlignedMethod` gets it.
        classes: of both vocabularies, on the device of the logits.
        on_cpu: the same positions on the CPU, so that nothing waits for the device.
    """

    logits: torch.Tensor
    targets: torch.Tensor
    positions: AlignedPositions
    classes: TokenClasses
    on_cpu: AlignedPositions


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The signal of a teacher of another tokenizer: ``n_t`` rows of its own for ``n`` of the student's.

    Attributes:
        signal: the teacher's word on its own rows: :class:`~distill_tune.losses.HiddenStates` or
            :class:`~distill_tune.losses.DenseLogits`.
        targets: the teacher's tokens at these rows, ``[n_t]``, int64.
        positions: of the student's rows, on the CPU, where rows are cut.
        classes: of both vocabularies, on the device of the signal.
    """

    signal: TeacherSignal
    targets: torch.Tensor
    positions: AlignedPositions
    classes: TokenClasses


class AlignedMethod(Protocol):
    """Compares a student's rows with those of a teacher of another tokenizer, and differentiates for the student.

    A ``kd_loss`` that does so says it by ``aligned = True``. Any other divergence is applied through
    :class:`~distill_tune.losses.byte_prefix.BytePrefixMass`.
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
