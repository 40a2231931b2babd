"""A loss between hidden states of the student's and the teacher's layers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

from distill_tune.losses.signals import HiddenStates


class HiddenLoss:
    """Pulls hidden states of the student's layers towards those of the teacher's, at the same positions of the answer.

    Layers are counted as transformers counts hidden states: 0 is the embeddings, i what layer i gives, the last one
    after the final norm. Where the widths differ a linear projector that trains along takes the student's to the
    teacher's (FitNets, Romero et al. 2014, arXiv 1412.6550, eq. 3; PKD, Sun et al. 2019, arXiv 1908.09355, has the maps
    ``uniform`` and ``last``, which it calls skip and last).

    Args:
        layers: ``uniform`` pairs each of the student's layers with the one as far up in the teacher, ``last`` the last
            ones; or pairs ``[student layer, teacher layer]``. An empty list is no loss.
        measure: ``mse``, the mean squared difference over the width, or ``cosine``, 1 - cos.
        positions: ``supervised``, or ``all`` where both read the same rows. The sum is divided as all losses are, by
            the step's supervised tokens.
        weight: of the mean over the pairs, a number or a schedule.

    Raises:
        ValueError: another map, measure or choice of positions.
    """

    def __init__(
        self,
        layers: str | Sequence[Sequence[int]] = "uniform",
        measure: Literal["mse", "cosine"] = "mse",
        positions: Literal["supervised", "all"] = "supervised",
        weight: Any = 1.0,
    ) -> None:
        if isinstance(layers, str) and layers not in ("uniform", "last"):
            raise ValueError(f"layers={layers}: must be uniform, last, or pairs [student layer, teacher layer]")
        if not isinstance(layers, str) and not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in layers):
            raise ValueError(f"layers={layers}: must be pairs [[student layer, teacher layer], ...]")
        if measure not in ("mse", "cosine") or positions not in ("supervised", "all"):
            raise ValueError(f"measure={measure}, positions={positions}: must be mse or cosine, supervised or all")
        self.layers, self.measure, self.positions, self.weight = layers, measure, positions, weight

    def pairs(self, num_student_layers: int, num_teacher_layers: int) -> list[tuple[int, int]]:
        """(student layer, teacher layer).

        Raises:
            ValueError: a layer that one of them has not.
        """
        if self.layers == "last":
            return [(num_student_layers, num_teacher_layers)]
        if self.layers == "uniform":
            share = num_teacher_layers / num_student_layers
            return [(layer, round(layer * share)) for layer in range(1, num_student_layers + 1)]
        pairs = [(int(pair[0]), int(pair[1])) for pair in self.layers]
        for student, teacher in pairs:
            if not (0 <= student <= num_student_layers and 0 <= teacher <= num_teacher_layers):
                raise ValueError(
                    f"layers: [{student}, {teacher}]: the student has {num_student_layers} layers, the teacher "
                    f"{num_teacher_layers}"
                )
        return pairs

    def __call__(
        self,
        student_layers: Sequence[torch.Tensor],
        signal: HiddenStates | None,
        supervised: torch.Tensor,
        projectors: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    ) -> torch.Tensor:
        """The mean over the pairs of what is summed over positions, float32; 0 without pairs.

        Args:
            student_layers: ``[s, d_s]`` for each pair.
            signal: with the teacher's ``[s_t, d_t]`` for each pair, and which of their positions are supervised.
            supervised: which of the student's positions are, ``[n]``, int64, as many as the teacher has.
            projectors: from d_s to d_t, for each pair.
        """
        total = torch.zeros((), device=supervised.device)
        if not student_layers:
            return total
        assert signal is not None
        for student, teacher, project in zip(student_layers, signal.layers, projectors, strict=True):
            if self.positions == "supervised":
                student, teacher = student[supervised], teacher[signal.supervised]
            student, teacher = project(student).float(), teacher.float()
            if self.measure == "mse":
                total = total + (student - teacher).square().mean(-1).sum()
            else:
                total = total + (1 - F.cosine_similarity(student, teacher, dim=-1)).sum()
        return total / len(student_layers)
