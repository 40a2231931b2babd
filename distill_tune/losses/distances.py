"""Distances between two distributions that are no KL divergence of any kind."""

import torch

from distill_tune.losses.divergences import Distribution


class TotalVariation:
    """1/2 sum_v |p - q| (Wen et al. 2023, arXiv 2307.15190, §3.1), between 0 and 1.

    As T grows the distance falls with 1/T, not with 1/T^2: T^2 times it grows with T. Take ``temperature: 1`` or
    ``temperature_squared: False``.
    """

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        difference = torch.sub(student.probs, teacher.probs, out=teacher.probs)
        values = difference.abs().sum(-1).mul_(0.5)
        sign = difference.sign_()
        mean = torch.linalg.vecdot(student.probs, sign)
        return values, sign.sub_(mean[:, None]).mul_(student.probs).mul_(0.5)


class LogitMSE:
    """Mean over the vocabulary of the squared difference of the centred logits (Kim et al. 2021, arXiv 2105.08919).

    Centred, since a constant added to all logits says nothing. Tokens that one of them excludes (-inf) are left out. As
    T grows T^2 times it stays what it is: twice what T^2 * KL tends to.
    """

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        difference = student.log_probs.sub_(teacher.log_probs)
        known = difference.isfinite()
        count = known.sum(-1, keepdim=True).clamp_(min=1)
        difference.masked_fill_(known.logical_not_(), 0.0)
        difference.sub_(difference.sum(-1, keepdim=True) / count).masked_fill_(known, 0.0)
        values = torch.linalg.vecdot(difference, difference) / count[:, 0]
        return values, difference.mul_(2 / count)
