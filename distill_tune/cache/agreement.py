"""How far two records of the same positions are from each other."""

import dataclasses
from typing import Any

import torch

from distill_tune.losses import SampledTokens, TokenLikelihoods, TopTokens

_LIKELY = 1e-4  # a probability below is of no weight, and rounded coarsely

_ROUNDED = 1e-3  # of a weight


@dataclasses.dataclass(frozen=True)
class Agreement:
    """
    Attributes:
        what: is compared.
        same: share of positions that are the same.
        mean, largest: difference of a position.
    """

    what: str
    same: float
    mean: float
    largest: float

    @classmethod
    def of(cls, stored: Any, made: Any) -> "Agreement":
        """
        Args:
            stored, made: of one kind and of the same positions, one or more, on the CPU.
        """
        if isinstance(stored, SampledTokens):
            tokens = torch.cat([stored.ids, made.ids], 1)
            same = (_weights_at(stored, tokens) - _weights_at(made, tokens)).abs().amax(-1) < _ROUNDED
            off = (stored.entropy - made.entropy).abs()
            return cls("entropies, in nats", *_summed(off, same))
        if isinstance(stored, TopTokens):
            same = stored.ids[:, 0] == made.ids[:, 0]
            both = stored.ids[:, :, None] == made.ids[:, None, :]  # [n, k, k]
            likely = both & (made.log_probs[:, None, :].exp() > _LIKELY)
            off = (stored.log_probs[:, :, None] - made.log_probs[:, None, :]).abs().masked_fill(~likely, 0.0)
            unknown = ~likely.flatten(1).any(-1)  # not a token in common
            return cls("log-probabilities", *_summed(off.flatten(1).amax(-1).masked_fill(unknown, torch.inf), same))
        if isinstance(stored, TokenLikelihoods):
            off = (stored.log_probs - made.log_probs).abs().masked_fill(stored.log_probs == made.log_probs, 0.0)
            return cls("log-probabilities of the rows' own tokens", *_summed(off, off == 0))
        stored, made = stored.float(), made.float()
        off = (stored - made).norm(dim=-1) / made.norm(dim=-1).clamp(min=1e-12)
        return cls("hidden states, as a share of their length", *_summed(off, off == 0))

    def __str__(self) -> str:
        return (
            f"{self.what}: differ by {self.largest:.2g} at most, {self.mean:.2g} on average; {self.same:.1%} of "
            "positions are the same"
        )


def _summed(off: torch.Tensor, same: torch.Tensor) -> tuple[float, float, float]:
    return same.float().mean().item(), off.mean().item(), off.max().item()


def _weights_at(record: SampledTokens, tokens: torch.Tensor) -> torch.Tensor:
    """Of tokens ``[n, t]``, 0 of those that were not drawn."""
    return (record.weights[:, None, :] * (record.ids[:, None, :] == tokens[:, :, None])).sum(-1)
