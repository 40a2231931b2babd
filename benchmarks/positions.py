"""Forward KL at some of the positions alone, as kd_loss of a config: whether choosing them is worth it.

Tavor et al. 2026 (arXiv 2602.01395) distil at the fifth of the positions where the student is least certain. A part of
the head's work has as many positions as fit; the choice is made among each 128 that follow one another, about a row.
"""

import torch

from distill_tune import losses
from distill_tune.losses.divergences import HUGE, Distribution

_TOGETHER = 128


class _SomePositions:
    """Its mean over the chosen positions keeps the size that the mean over all has: they count 1 / share each.

    Args:
        share: of the positions, above 0, at most 1.
    """

    def __init__(self, share: float = 0.2) -> None:
        self._share = share
        self._divergence = losses.ForwardKL()

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.cat([self._weights(order) for order in self._order(student).split(_TOGETHER)])
        values, gradient = self._divergence(student, teacher)
        return values * weight, gradient.mul_(weight[:, None])

    def _weights(self, order: torch.Tensor) -> torch.Tensor:
        """Of positions that are chosen among, ``[g]``; those with the largest numbers are taken."""
        count = max(1, round(self._share * len(order)))
        chosen = order.topk(count).indices
        return torch.zeros_like(order).index_fill_(0, chosen, len(order) / count)

    def _order(self, student: Distribution) -> torch.Tensor:
        raise NotImplementedError


class UncertainPositions(_SomePositions):
    """Where the student's entropy is largest."""

    def _order(self, student: Distribution) -> torch.Tensor:
        return -torch.linalg.vecdot(student.probs, student.log_probs.clamp(min=-HUGE))


class RandomPositions(_SomePositions):
    """As many, drawn anew each time."""

    def _order(self, student: Distribution) -> torch.Tensor:
        return torch.rand_like(student.probs[:, 0])
