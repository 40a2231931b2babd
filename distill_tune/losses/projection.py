"""A model's output layer as the head wants it: logits of a chunk of rows, and what their gradient is worth."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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

    def memory(self, rows: int, slot: int, dtype: torch.dtype) -> torch.Tensor | None:
        """What :meth:`logits` can write so many rows into; None where it makes its own.

        Args:
            slot: 0 for the student's, 1 for the teacher's, which are there at the same time.
            dtype: of the hidden states.
        """
        ...

    def logits(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        """``[c, d] -> [c, v]`` before any cap, of any float dtype; the head may overwrite them."""
        ...

    def backward(
        self, hidden: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor, totals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """The gradient for ``hidden`` ``[c, d]``; that of each of ``trainable`` is added to its total (float32).

        Args:
            hidden, logits: given to and got from :meth:`logits`; the values of ``logits`` may be overwritten by now.
            gradient: for the logits, ``[c, v]``, in the dtype of ``hidden``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LinearProjection:
    """``hidden @ weight.T + bias``, in as few products as there can be and without autograd.

    Products are of the dtype of the hidden states; a weight of another one (float32, where it trains under a model that
    computes in bf16) is cast once, so a projection serves as long as its weight stays as it is. Logits are float32
    whatever that dtype is: in bf16 a logit of 20 is off by up to 0.06, and its probability by 6 %.

    Attributes:
        weight: ``[v, d]``.
        bias: ``[v]``.
        softcap: as in :class:`Projection`.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    softcap: float | None = None
    _casts: dict[torch.dtype, torch.Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def trainable(self) -> Sequence[torch.Tensor]:
        return [
            parameter for parameter in (self.weight, self.bias) if parameter is not None and parameter.requires_grad
        ]

    def memory(self, rows: int, slot: int, dtype: torch.dtype) -> torch.Tensor | None:
        if self.weight.is_cuda and dtype != torch.float32:  # whose products can give float32
            return None
        return _kept_memory(rows * self.vocab_size, self.weight.device, slot).view(rows, self.vocab_size)

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        weight = self._weight_in(hidden.dtype)
        if memory is None:
            out = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        elif weight.dtype == torch.float32:
            out = torch.mm(hidden, weight.t(), out=memory)
        else:
            out, hidden = memory, hidden.float()
            for part in slices(weight, itemsize=4):
                out[:, part] = hidden @ weight[part].t().float()
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
        return gradient @ self._weight_in(gradient.dtype)

    def _weight_in(self, dtype: torch.dtype) -> torch.Tensor:
        if self.weight.dtype == dtype:
            return self.weight
        if dtype not in self._casts:
            self._casts[dtype] = self.weight.detach().to(dtype)
        return self._casts[dtype]


@dataclasses.dataclass(frozen=True)
class AutogradProjection:
    """Any differentiable callable, ``[c, d] -> [c, v]``; its logits are as precise as it makes them.

    Attributes:
        project: the callable, without the cap.
        vocab_size, trainable, softcap: as in :class:`Projection`.
    """

    project: Callable[[torch.Tensor], torch.Tensor]
    vocab_size: int
    trainable: Sequence[torch.Tensor] = ()
    softcap: float | None = None

    def memory(self, rows: int, slot: int, dtype: torch.dtype) -> torch.Tensor | None:
        return None

    def logits(self, hidden: torch.Tensor, memory: torch.Tensor | None) -> torch.Tensor:
        # A copy, for the head overwrites it, and the callable's last operation may have kept its own.
        return self.project(hidden).to(torch.float32, copy=True)

    def backward(
        self, hidden: torch.Tensor, logits: torch.Tensor, gradient: torch.Tensor, totals: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        found = torch.autograd.grad(logits, [hidden, *self.trainable], gradient.float())
        for total, part in zip(totals, found[1:], strict=True):
            total.add_(part)
        return found[0]


_kept: dict[tuple[torch.device, int], torch.Tensor] = {}


def _kept_memory(size: int, device: torch.device, slot: int) -> torch.Tensor:
    """The same float32 memory at each call: the system would hand out large pieces anew, page by page."""
    key = (device, slot)
    if key not in _kept or len(_kept[key]) < size:
        with torch.inference_mode(False):  # whoever generates may ask first, and a loss writes there later
            _kept[key] = torch.empty(size, dtype=torch.float32, device=device)
    return _kept[key][:size]


_SLICE_BYTES = 32 * 2**20


def slices(weight: torch.Tensor, itemsize: int) -> Iterator[slice]:
    """Rows of a weight, so many together as _SLICE_BYTES hold."""
    rows = max(1, _SLICE_BYTES // (weight.shape[1] * itemsize))
    return (slice(start, start + rows) for start in range(0, len(weight), rows))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """``total += left @ right`` without a second tensor of that size: ``[v, c] @ [c, d]``."""
    if total.dtype == left.dtype == right.dtype:
        total.addmm_(left, right)
        return
    for part in slices(total, itemsize=right.element_size()):
        total[part] += left[part].to(right.dtype) @ right
