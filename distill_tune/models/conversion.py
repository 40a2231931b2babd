"""Weights between Hugging Face's layout and torchtune's, by torchtune's own converters."""

from collections.abc import Callable
from typing import Any

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError

from torchtune.models import convert_weights
from torchtune.models.gemma2._convert_weights import gemma2_hf_to_tune, gemma2_tune_to_hf
from torchtune.models.phi3._convert_weights import phi3_hf_to_tune, phi3_tune_to_hf
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune, qwen2_tune_to_hf

Weights = dict[str, torch.Tensor]

# The model_type of torchtune's checkpointers -> (to torchtune, to Hugging Face).
_CONVERTERS: dict[str, tuple[Callable[..., Weights], Callable[..., Weights]]] = {
    **dict.fromkeys(
        ("GEMMA", "LLAMA2", "LLAMA3", "LLAMA3_2", "MISTRAL"), (convert_weights.hf_to_tune, convert_weights.tune_to_hf)
    ),
    "GEMMA2": (gemma2_hf_to_tune, gemma2_tune_to_hf),
    "PHI3_MINI": (phi3_hf_to_tune, phi3_tune_to_hf),
    "PHI4": (phi3_hf_to_tune, phi3_tune_to_hf),
    "QWEN2": (qwen2_hf_to_tune, qwen2_tune_to_hf),
}
PEFT_TYPES = ("GEMMA", "LLAMA2", "LLAMA3", "LLAMA3_2", "MISTRAL", "QWEN2")


def hf_to_torchtune(weights: Weights, model_type: str, config: dict[str, Any]) -> Weights:
    """
    Args:
        weights: by their names in the checkpoint; meta tensors are converted as well.
        model_type: as torchtune's checkpointers call it.
        config: the checkpoint's config.json.

    Raises:
        UserError: the names do not belong to this model type.
    """
    converter = _converters(model_type)[0]
    try:
        return converter(weights, **_shape_arguments(model_type, config, to_torchtune=True))
    except Exception as error:  # torchtune raises plain Exception for a name that it does not know
        reason = " ".join(str(error).split())
        raise UserError(f"checkpointer.model_type={model_type}: does not fit the checkpoint: {reason[:200]}") from error


def torchtune_to_hf(weights: Weights, model_type: str, config: dict[str, Any]) -> Weights:
    """The inverse of :func:`hf_to_torchtune`."""
    return _converters(model_type)[1](weights, **_shape_arguments(model_type, config, to_torchtune=False))


def _converters(model_type: str) -> tuple[Callable[..., Weights], Callable[..., Weights]]:
    if model_type not in _CONVERTERS:
        raise UserError(f"checkpointer.model_type={model_type}: must be one of {', '.join(sorted(_CONVERTERS))}")
    return _CONVERTERS[model_type]


def _shape_arguments(model_type: str, config: dict[str, Any], *, to_torchtune: bool) -> dict[str, Any]:
    shape = {
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config["num_key_value_heads"],
        "dim": config["hidden_size"],
    }
    if model_type in ("PHI3_MINI", "PHI4"):
        grouped = shape["num_heads"] != shape["num_kv_heads"]
        return (shape if grouped else dict.fromkeys(shape)) if to_torchtune else {}
    if model_type == "QWEN2":
        return shape | {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
    return shape | {"head_dim": config.get("head_dim")}
