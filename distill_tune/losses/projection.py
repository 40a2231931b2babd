"""A model's output layer as the head wants it: logits of a chunk of rows, and what their gradient is worth."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class Projection(Protocol):
    """Turns hidden states into logits, and a gradient for the logits into gradients for what made them.

    Attributes:
        vocab_size: v.
        softcap: logits l are meant as softcap * tanh(l / softcap) (Gemma 2, arXiv 2408.00118, §2); None for l itself.
            The head applies it, :meth:`logits` does not.
        trainable: the parameters that take a gradient.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def softcap(self) -> float | None: ...
    @property
    def trainable(self) -> Sequence[torch.Tensor]: ...

    def logits(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``[c, d] -> [c, v]`` before any cap. ``out`` is memory that may be used, ``[c, v]``."""
        ...

    def backward(
        self, hidden: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor, totals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The gradient for ``hidden`` ``[c, d]``; that of each of ``trainable`` is added to its total (float32).

        Args:
            hidden, logits: given to and got from :meth:`logits`; the values of ``logits`` may be overwritten by now.
            gradient: for the logits, ``[c, v]``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LinearProjection:
    """``hidden @ weight.T + bias``, in as few products as there can be and without autograd.

    Attributes:
        weight: ``[v, d]``.
        bias: ``[v]``.
        softcap: as in :class:`Projection`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def trainable(self) -> Sequence[torch.Tensor]:
        return [
            parameter for parameter in (self.weight, self.bias) if parameter is not None and parameter.requires_grad
        ]

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        torch.mm(hidden, self.weight.t(), out=out)
        return out if self.bias is None else out.add_(self.bias)

    @torch.no_grad()
    def backward(
        self, hidden: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor, totals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        remaining = list(totals)
        if self.weight.requires_grad:
            _add_product(remaining.pop(0), gradient.t(), hidden)
        if self.bias is not None and self.bias.requires_grad:
            remaining.pop(0).add_(gradient.sum(0, dtype=torch.float32))
        return gradient @ self.weight


@dataclasses.dataclass(frozen=True)
class AutogradProjection:
    """Any differentiable callable, ``[c, d] -> [c, v]``: adapters on the output layer, a quantised weight.

    Attributes:
        project: the callable, without the cap.
        vocab_size, trainable, softcap: as in :class:`Projection`.
    """

    project: Callable[[torch.Tensor], torch.Tensor]
    vocab_size: int
    trainable: Sequence[torch.Tensor] = ()
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return self.project(hidden)

    def backward(
        self, hidden: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor, totals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        found = torch.autograd.grad(logits, [hidden, *self.trainable], gradient)
        for total, part in zip(totals, found[1:], strict=True):
            total.add_(part)
        return found[0]


_SLICE_BYTES = 32 * 2**20


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right`` without a second tensor of that size: ``[v, c] @ [c, d]``."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
        return
    rows = max(1, _SLICE_BYTES // (right.shape[1] * right.element_size()))
    for start in range(0, len(left), rows):
        total[start : start + rows] += left[start : start + rows] @ right
