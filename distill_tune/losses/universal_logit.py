"""Probabilities compared by their rank, whatever their tokens are."""

from typing import ClassVar

import torch

from distill_tune.losses.aligned import AlignedWord
from distill_tune.losses.divergences import Distribution
from distill_tune.to_device import to_device


class UniversalLogit:
    """sum_i |q_(i) - p_(i)|, both sorted from the likeliest down (ULD, Boizard et al. 2024, arXiv 2402.12030).

    The smaller vocabulary is filled up with probabilities of 0; a row has from 0 to 2. Which tokens these are is not
    looked at: a student that is as sure as the teacher, but of another token, has 0. So it needs cross-entropy beside
    it, ``kd_ratio`` below 1, as in the paper. As T grows the distance falls with 1/T, not with 1/T^2: T^2 times it
    grows with T. Take ``temperature: 1`` or ``temperature_squared: False``.

    Compared are rows at common boundaries, where both models are asked for the token behind the same bytes; others have
    0. The paper pairs the first row with the first, the second with the second, as many as both have: behind the first
    place where tokenizers differ these are rows behind different texts. It has a mean over the rows that it compares;
    here sums are divided by all of the student's tokens.
    """

    aligned: ClassVar[bool] = True

    def __call__(
        self, student: Distribution, teacher: Distribution, targets: torch.Tensor, word: AlignedWord
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = word.on_cpu.boundary.nonzero()[:, 0]
        at = to_device(word.on_cpu.at[rows], targets.device)
        rows = to_device(rows, targets.device)
        q = student.probs[rows]
        of_rows, slope = ranked(q, teacher.probs[at])
        mean = torch.linalg.vecdot(q, slope)
        gradient = slope.sub_(mean[:, None]).mul_(q)
        values = of_rows.new_zeros(len(targets)).index_copy_(0, rows, of_rows)
        return values, student.probs.zero_().index_copy_(0, rows, gradient)


def ranked(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_i |s_(i) - t_(i)| of each row ``[n]``, and its slope for the student's numbers ``[n, k_s]``.

    Args:
        student, teacher: numbers of at least 0, ``[n, k_s]`` and ``[n, k_t]``.
    """
    k = min(student.shape[1], teacher.shape[1])
    largest, order = student.topk(k)
    of_teacher = teacher.topk(k).values
    # What one side has beyond these meets 0, in whatever order: sorting so few takes a fraction of sorting all.
    beyond = sum(of.sum(-1) - top.sum(-1) for of, top in ((student, largest), (teacher, of_teacher)) if of.shape[1] > k)
    difference = largest.sub_(of_teacher)
    values = difference.abs().sum(-1) + beyond
    return values, torch.ones_like(student).scatter_(1, order, difference.sign_())
