"""An output layer with a low-rank adapter as the head wants it: LoRA and DoRA in closed form."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from distill_tune.losses.projection import LinearProjection, slices

_OWN_MEMORY = -1  # a slot beside those of the head


class AdaptedProjection:
    """LoRA's ``h W^T + b + s h A^T B^T`` (arXiv 2106.09685, eq. 3), or DoRA's, which brings it to a norm.

    DoRA (arXiv 2402.09353, eq. 5 and 11) multiplies it by m / |W + s B A|, a norm for each row, through which no
    gradient goes. The product with W is :class:`LinearProjection`'s, whatever passes through the rank is
    float32, and so are the logits. It serves as long as its weights stay as they are.

    Args:
        base: W ``[v, d]`` and b, frozen, without a cap.
        down: A ``[r, d]``.
        up: B ``[v, r]``.
        scaling: s.
        magnitude: m ``[v]``; None for LoRA.
        dropout: of the hidden states that A sees.
    """

    softcap = None

    def __init__(
        self,
        base: LinearProjection,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
        magnitude: torch.Tensor | None = None,
        dropout: Callable[[torch.Tensor], torch.Tensor] = lambda hidden: hidden,
    ) -> None:
        self.base, self.down, self.up, self.scaling = base, down, up, scaling
        self.magnitude, self.dropout = magnitude, dropout

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size

    @property
    def trainable(self) -> Sequence[torch.Tensor]:
        factors = [self.down, self.up] if self.magnitude is None else [self.down, self.up, self.magnitude]
        return factors if self.down.requires_grad else []

    def memory(self, rows: int, slot: int, dtype: torch.dtype) -> torch.Tensor | None:
        return self.base.memory(rows, slot, dtype)

    def logits(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        self._features = F.linear(self.dropout(hidden).float(), self.down.float())  # [c, r], kept for backward
        with torch.no_grad():
            out = self.base.logits(hidden, memory)
            out.addmm_(self._features, self._up.t(), alpha=self.scaling)
            return out if self.magnitude is None else out.mul_(self.magnitude / self._norm)

    def backward(
        self, hidden: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor, totals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        of_down, of_up, *of_magnitude = totals
        features = self._features.detach()
        of_features = torch.zeros_like(features)
        with torch.no_grad():
            for part in slices(gradient.t(), itemsize=4):
                of_part = gradient[:, part].float()
                if self.magnitude is not None:
                    memory = self.base.memory(len(hidden), _OWN_MEMORY, hidden.dtype)
                    unscaled = self._of_part(part).logits(hidden, memory)
                    unscaled.addmm_(features, self._up[part].t(), alpha=self.scaling)
                    of_magnitude[0][part] += unscaled.mul_(of_part).sum(0) / self._norm[part]
                    gradient[:, part] = of_part.mul_(self.magnitude[part] / self._norm[part])
                of_up[part].addmm_(of_part.t(), features, alpha=self.scaling)
                of_features.addmm_(of_part, self._up[part], alpha=self.scaling)
        of_hidden, of_this = torch.autograd.grad(self._features, [hidden, self.down], of_features)
        of_down.add_(of_this)
        return of_hidden.add_(self.base.backward(hidden, logits, gradient, []))

    @functools.cached_property
    def _up(self) -> torch.Tensor:
        return self.up.detach().float()

    @functools.cached_property
    @torch.no_grad()
    def _norm(self) -> torch.Tensor:
        """|W + s B A| of each row, ``[v]``."""
        weight, down = self.base.weight, self.down.float()

        def norm(part: slice) -> torch.Tensor:
            return (weight[part].float() + self.scaling * self._up[part] @ down).norm(dim=1)

        return torch.cat([norm(part) for part in slices(weight, itemsize=4)])

    def _of_part(self, part: slice) -> LinearProjection:
        """Of some tokens, with their bias."""
        bias = self.base.bias
        return dataclasses.replace(self.base, weight=self.base.weight[part], bias=None if bias is None else bias[part])
