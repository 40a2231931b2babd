"""A vocabulary's tokens in groups: the probability of each group, and a gradient's way back to the tokens."""

import dataclasses

import torch

from distill_tune.losses.divergences import Distribution


@dataclasses.dataclass(frozen=True)
class TokenGroups:
    """Most groups have one token; these are copied, not summed.

    Attributes:
        group: of each token, ``[v]``, int64.
        one: a token of each group, ``[k]``; any token for a group without one.
        several: the groups that have not exactly one token, ``[m]``.
        others: the tokens of these groups, but for the one in ``one``, ``[o]``.
        alone: whether a token is the only one of its group, ``[v]``, bool.
    """

    group: torch.Tensor
    one: torch.Tensor
    several: torch.Tensor
    others: torch.Tensor
    alone: torch.Tensor
    _group_of_others: torch.Tensor
    _empty: torch.Tensor

    @classmethod
    def of(cls, group: torch.Tensor, num_groups: int) -> "TokenGroups":
        """Waits for the device."""
        tokens = torch.arange(len(group), device=group.device)
        one = torch.zeros(num_groups, dtype=torch.int64, device=group.device)
        one.scatter_reduce_(0, group, tokens, "amin", include_self=False)
        size = torch.bincount(group, minlength=num_groups)
        others = (one[group] != tokens).nonzero()[:, 0]
        several, empty = (size != 1).nonzero()[:, 0], (size == 0).nonzero()[:, 0]
        return cls(group, one, several, others, size[group] == 1, group[others], empty)

    def sums(self, of: Distribution, least: float = 0.0) -> Distribution:
        """Over the groups, ``[n, k]``.

        Args:
            of: over the tokens, ``[n, v]``.
            least: what a sum of several is at least in its logarithm.
        """
        probs = of.probs.index_select(1, self.one)
        log_probs = of.log_probs.index_select(1, self.one)
        if len(self.several):
            probs.index_fill_(1, self._empty, 0.0)
            probs.index_add_(1, self._group_of_others, of.probs.index_select(1, self.others))
            log_probs.index_copy_(1, self.several, probs.index_select(1, self.several).clamp_(min=least).log_())
        return Distribution(log_probs, probs)

    def to_tokens(
        self, gradient: torch.Tensor, several: torch.Tensor, probs: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor:
        """The gradient for the tokens' logits ``[n, v]`` from that for the groups': a token has its share of its group.

        Args:
            gradient: for the logarithms of the groups' masses, ``[n, k]``; overwritten.
            several: what :meth:`sums` gave for the groups of several tokens, ``[n, m]``.
            probs: of the tokens, ``[n, v]``; overwritten.
            out: what it is written into, ``[n, v]``.
        """
        if not len(self.several):
            return torch.index_select(gradient, 1, self.group, out=out)
        of_several = gradient.index_select(1, self.several).div_(several.clamp(min=torch.finfo(torch.float32).tiny))
        gradient.index_copy_(1, self.several, of_several)
        torch.index_select(gradient, 1, self.group, out=out)
        return out.mul_(probs.masked_fill_(self.alone, 1.0))
