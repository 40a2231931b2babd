"""A student made from its teacher: the same model with some of its layers left out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.models.decoder_config import DecoderConfig

from torchtune.modules import TransformerDecoder


def layers_kept(num_layers: int, layers: Sequence[int] | None = None, every: int | None = None) -> list[int]:
    """
    Args:
        num_layers: of the teacher.
        layers: the layers to keep, from 0.
        every: keep every so manyth layer, the first one included.

    Raises:
        UserError: a layer that is not there, or twice, or nothing left out.
    """
    kept = sorted(layers) if layers is not None else list(range(0, num_layers, every or 1))
    wrong = [layer for layer in kept if not 0 <= layer < num_layers]
    if wrong:
        raise UserError(f"--layers: there is no layer {wrong[0]}; the teacher's are 0 to {num_layers - 1}")
    if len(set(kept)) != len(kept):
        raise UserError("--layers: names a layer twice")
    if not 0 < len(kept) < num_layers:
        raise UserError(f"keeps {len(kept)} of {num_layers} layers; a student has fewer than its teacher, and some")
    return kept


def keep_layers(model: TransformerDecoder, kept: Sequence[int]) -> None:
    """Leave all other layers out of a model of :func:`~distill_tune.models.builders.from_hf`, in place."""
    config: DecoderConfig = model.decoder_config
    model.layers = nn.ModuleList(model.layers[layer] for layer in kept)
    model.decoder_config = dataclasses.replace(
        config,
        num_layers=len(kept),
        windows=tuple(config.windows[layer] for layer in kept),
        ropes=tuple(config.ropes[layer] for layer in kept),
    )


def pruned_config(config: dict[str, Any], decoder: DecoderConfig, kept: Sequence[int]) -> dict[str, Any]:
    """config.json of the pruned model; a pattern of layer types is spelled out, since it no longer holds."""
    pruned = {**config, "num_hidden_layers": len(kept)}
    if len(set(decoder.windows)) > 1:
        pruned.pop("sliding_window_pattern", None)
        kinds = ["sliding_attention" if window else "full_attention" for window in decoder.windows]
        pruned["layer_types"] = [kinds[layer] for layer in kept]
    elif pruned.get("layer_types"):
        pruned["layer_types"] = [pruned["layer_types"][layer] for layer in kept]
    return pruned


@torch.no_grad()
def least_missed_layer(model: TransformerDecoder, batches: Sequence[Any], loss_of: Any) -> tuple[int, float]:
    """The layer without which a model's loss on held-out rows is lowest, and that loss.

    Each layer's input is computed once: only what comes after a layer that is left out is run again.

    Args:
        batches: held-out :class:`~distill_tune.data.Batch` es.
        loss_of: (last hidden states ``[b, s, d]`` before the final norm, batch) to a summed loss.
    """
    losses = [0.0] * len(model.layers)
    for batch in batches:
        attention = batch.attention()
        hidden = model.tok_embeddings(batch.tokens)
        for layer in range(len(model.layers)):
            without = hidden
            for later in model.layers[layer + 1 :]:
                without = later(without, **attention)
            losses[layer] += float(loss_of(without, batch))
            hidden = model.layers[layer](hidden, **attention)
    best = min(range(len(losses)), key=losses.__getitem__)
    return best, losses[best]
