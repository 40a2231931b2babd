"""A bound on what a single token counts."""

import torch

from distill_tune.losses.divergences import Distribution, Divergence, ForwardKL


class ClippedPerToken:
    """``divergence`` of each token, or ``most`` where that is less: min(D, most).

    A token that would count more has no gradient: a teacher that knows more than the student is followed where they are
    near each other, not where they speak of different things. Where both agree it is 0, as ``divergence`` is.

    Args:
        most: nats, above 0.
        divergence: default forward KL.

    Raises:
        ValueError: ``most`` is not above 0.
    """

    def __init__(self, most: float, divergence: Divergence | None = None) -> None:
        if most <= 0:
            raise ValueError(f"most={most}: must be above 0")
        self.most = most
        self.divergence = divergence or ForwardKL()

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        values, gradient = self.divergence(student, teacher)
        return values.clamp(max=self.most), gradient.masked_fill_((values > self.most)[:, None], 0.0)
