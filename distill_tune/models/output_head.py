"""A model's output projection, taken out of its forward so that the loss can own it."""

import dataclasses
from types import MethodType
from typing import cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torchao.dtypes.nf4tensor import NF4Tensor

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.losses.adapted_projection import AdaptedProjection
from distill_tune.losses.projection import AutogradProjection, LinearProjection, Projection
from distill_tune.models.packed_rows import use_packed_rows

from torchtune.modules import FrozenNF4Linear, TiedLinear, TransformerDecoder
from torchtune.modules.peft import DoRALinear, LoRALinear


@dataclasses.dataclass(frozen=True)
class OutputHead:
    """What turns a last hidden state into logits.

    Attributes:
        projection: the output layer, or the tied one.
        module: whose weight it uses: the output layer or the embeddings.
    """

    projection: nn.Module | TiedLinear
    module: nn.Module

    @property
    def weight(self) -> torch.Tensor:
        """``[v, d]``; of a LoRA layer the base weight."""
        return cast(torch.Tensor, self.module.weight)

    @property
    def trainable(self) -> tuple[nn.Parameter, ...]:
        """The parameters of :meth:`project` that take a gradient; empty for a frozen head.

        Of a sharded model they are others while it is gathered: ask after its forward.
        """
        return tuple(parameter for parameter in self.module.parameters() if parameter.requires_grad)

    @property
    def vocab_size(self) -> int:
        return self.weight.shape[0]

    @property
    def softcap(self) -> float | None:
        return getattr(self.projection, "cap", None)

    def projection_for_loss(self) -> Projection:
        """What the loss walks over, anew for each batch. Of a sharded model, ask after its forward, when it is whole.

        Logits are float32, but for layers that neither torchtune nor this package has.
        """
        layer, base = self.projection, self.base_projection_for_loss()
        if not isinstance(layer, LoRALinear | DoRALinear) or not isinstance(base, LinearProjection) or layer.disabled:
            return base
        scaling = layer.scaling if isinstance(layer, DoRALinear) else layer.alpha / layer.rank
        magnitude = layer.magnitude if isinstance(layer, DoRALinear) else None
        return AdaptedProjection(
            base, layer.lora_a.weight, layer.lora_b.weight, scaling, magnitude, dropout=layer.dropout
        )

    def base_projection_for_loss(self) -> Projection:
        """:meth:`projection_for_loss` without the layer's adapters."""
        weight = self.weight
        if isinstance(weight.data, NF4Tensor):
            weight = weight.data.get_original_weight()
        if not self._is_linear or is_traceable_wrapper_subclass(weight.data):  # other quantised weights are such
            return AutogradProjection(self.project_uncapped, self.vocab_size, self.trainable, self.softcap)
        return LinearProjection(weight, getattr(self.module, "bias", None), self.softcap)

    @property
    def _is_linear(self) -> bool:
        """Whether logits are a product with the weight, apart from cap and adapters."""
        if isinstance(self.projection, nn.Linear) and type(self.projection).forward is nn.Linear.forward:
            return True  # sharded, it is of a class of FSDP's
        return isinstance(self.projection, TiedLinear | SoftCappedLinear | LoRALinear | DoRALinear | FrozenNF4Linear)

    def project_uncapped(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[n, d]`` to logits ``[n, v]``, without the cap of :attr:`softcap`."""
        if isinstance(self.projection, SoftCappedLinear):
            return nn.Linear.forward(self.projection, hidden)
        if isinstance(self.projection, SoftCappedTiedLinear):
            return TiedLinear.__call__(self.projection, hidden)
        return self.project(hidden)

    def project(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states ``[n, d]`` to logits ``[n, v]``."""
        # Past FSDP's hooks, which would free the weight after each chunk.
        call = self.projection.forward if isinstance(self.projection, nn.Module) else self.projection
        return call(hidden)

    def gather(self) -> None:
        """Make a sharded weight whole until :meth:`release`, or until backward is through."""
        if isinstance(self.module, FSDPModule):
            self.module.unshard()

    def release(self) -> None:
        if isinstance(self.module, FSDPModule):
            self.module.reshard()


class SoftCappedLinear(nn.Linear):
    """An output layer whose logits l become cap * tanh(l / cap), as Gemma 2 has it (arXiv 2408.00118, §2)."""

    def __init__(self, in_dim: int, out_dim: int, cap: float) -> None:
        super().__init__(in_dim, out_dim, bias=False)
        self.cap = cap

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) / self.cap).tanh() * self.cap


class SoftCappedTiedLinear(TiedLinear):
    """:class:`SoftCappedLinear` with the embeddings' weight."""

    def __init__(self, tied_module: nn.Module, cap: float) -> None:
        super().__init__(tied_module)
        self.cap = cap

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (super().__call__(x) / self.cap).tanh() * self.cap


def take_output_head(model: TransformerDecoder) -> OutputHead:
    """Make ``model(tokens)`` end at its last hidden state ``[b, s, d]``, and return what was left out.

    From now on it takes :class:`~distill_tune.models.packed_rows.PackedRows` as a mask, whoever built it.
    """
    use_packed_rows(model)
    model.unembed = MethodType(_final_norm, model)
    model._validate_inputs = _accept_packed_rows
    return output_head(model)


def output_head(model: TransformerDecoder) -> OutputHead:
    """The output projection of a model, tied to its embeddings or its own, with LoRA or without."""
    projection = model.output
    return OutputHead(projection, projection.tied_module if isinstance(projection, TiedLinear) else projection)


def _accept_packed_rows(*args: object, **kwargs: object) -> None:
    """In place of torchtune's check that the sequence is no longer than the model reads: only each row must be."""


def _final_norm(model: TransformerDecoder, hidden: torch.Tensor) -> torch.Tensor:
    return model.norm(hidden)
