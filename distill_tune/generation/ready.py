"""A model made ready for many short forward passes, and as it was afterwards."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.generation.prepacked import (
    Product,
    has_room_for_copies,
    prepacked,
    prepacked_layers,
    quantized_once,
)
from distill_tune.losses.projection import LinearProjection
from distill_tune.losses.signals import capped
from distill_tune.models.cached_rows import FilledRows, GrownRows
from distill_tune.models.output_head import output_head
from distill_tune.models.packed_rows import use_packed_rows
from distill_tune.models.precision import cast_throughout, computed_in

from torchtune.modules import TransformerDecoder


@contextlib.contextmanager
def ready_to_generate(model: TransformerDecoder, rows: int) -> "Iterator[ReadyModel]":
    """Without dropout; what trains cast once, and sharded weights gathered, all of them, on this rank.

    Every rank of a sharded model calls it at the same time; what they do in between is their own.

    Args:
        model: whole or sharded, its output head in place or taken. Its weights are used as they are; on a CPU copied
            into a faster layout, see :func:`prepacked_layers`.
        rows: at a time; one alone gains nothing by copies.
    """
    was_training = model.training
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.eval()
    use_packed_rows(model)
    for module in sharded:
        module.unshard()
    try:
        with contextlib.ExitStack() as stack:
            if hasattr(model, "computes_in"):
                stack.enter_context(cast_throughout(model))
            copies = rows > 1 and has_room_for_copies(model)
            stack.enter_context(quantized_once(model.layers, copies))
            if copies:
                stack.enter_context(prepacked_layers(model.layers))
            yield ReadyModel(model, bool(sharded), copies)
    finally:
        for module in sharded:
            module.reshard()
        model.train(was_training)


class ReadyModel:
    """Runs a model's layers over rows of a key-value cache.

    Attributes:
        dtype: of hidden states, and of what the cache holds.
        device: on which they are.
    """

    def __init__(self, model: TransformerDecoder, is_sharded: bool, prepack: bool) -> None:
        embeddings, past_hooks = model.tok_embeddings, is_sharded or hasattr(model, "computes_in")
        self._is_sharded = is_sharded
        self._embed, self._norm = (_call_of(module, past_hooks) for module in (embeddings, model.norm))
        self._layers = [_call_of(layer, past_hooks) for layer in model.layers]
        self._projection = projection = output_head(model).projection_for_loss()
        self.device = embeddings.weight.device
        gathered = next(model.layers[0].parameters()).dtype
        self.dtype = computed_in(model) if hasattr(model, "computes_in") else gathered
        self._product: Product | None = None
        if prepack and isinstance(projection, LinearProjection) and self.dtype == torch.float32:
            self._product = prepacked(projection.weight, projection.bias)

    def without_gradients(self) -> contextlib.AbstractContextManager[None]:
        """For what is called of this model."""
        # Of many small operations inference mode takes a tenth of the time; what FSDP has gathered is not for it.
        return torch.no_grad() if self._is_sharded else torch.inference_mode()

    def hidden_states(
        self, tokens: torch.Tensor, positions: torch.Tensor, rows: FilledRows | GrownRows
    ) -> torch.Tensor:
        """
        Args:
            tokens, positions: ``[b, s]``.

        Returns:
            ``[b, s, d]``.
        """
        hidden = self._embed(tokens).to(self.dtype)
        for number, layer in enumerate(self._layers):
            rows.layer = number
            hidden = layer(hidden, mask=rows, input_pos=positions)
        return self._norm(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[n, d] -> [n, v]``, float32."""
        projection = self._projection
        if self._product is not None:
            return capped(self._product(hidden), projection.softcap)
        memory = projection.memory(len(hidden), 0, hidden.dtype)
        return capped(projection.logits(hidden, memory), projection.softcap)


def _call_of(module: nn.Module, past_hooks: bool) -> Callable[..., torch.Tensor]:
    """What runs a module as it was written: what is compiled was compiled for training.

    Args:
        past_hooks: those that would cast what is cast, and shard anew what the next token needs. Others, which bring a
            layer's weights, are heeded.
    """
    module = getattr(module, "_checkpoint_wrapped_module", module)
    has_hooks = module._forward_pre_hooks or module._forward_hooks
    return module if has_hooks and not past_hooks else module.forward
