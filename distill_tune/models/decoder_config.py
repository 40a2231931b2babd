"""config.json of a Hugging Face folder, read into what a decoder is built from."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_tune.config.values import MOST_LAYERS
from distill_tune.errors import UserError
from distill_tune.models.rope import RopeConfig

# What published config.json files leave to transformers' defaults, by architecture.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"attention_bias": True},  # of q, k and v alone
    "Qwen3ForCausalLM": {"head_dim": 128},
    "Gemma2ForCausalLM": {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "head_dim": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "tie_word_embeddings": True,
    },
    "Gemma3ForCausalLM": _GEMMA3_DEFAULTS,
    "Gemma3ForConditionalGeneration": _GEMMA3_DEFAULTS,  # with a vision tower, which is left out
    "Phi3ForCausalLM": {},
}
# For a config.json that names no architecture.
_BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",
    "phi3": "Phi3ForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """
    Attributes:
        architecture: as config.json calls it.
        windows: for each layer, how many positions it sees; None for all.
        ropes: for each layer.
        qk_norm: q and k are normalised over each head.
        gemma: norms weigh by 1 + w and come after attention and MLP too, embeddings are scaled by sqrt(embed_dim).
        fused: the checkpoint keeps q, k and v in one matrix, gate and up in another.
        attention_scale: scores are multiplied by it.
    """

    architecture: str
    vocab_size: int
    num_layers: int
    embed_dim: int
    intermediate_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_seq_len: int
    norm_eps: float
    tied_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    activation: str
    qk_norm: bool
    gemma: bool
    fused: bool
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    windows: tuple[int | None, ...]
    ropes: tuple[RopeConfig, ...]


_MOST = 2**31
_SIZES = (
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
)


def read_config_json(folder: Path, key: str) -> dict[str, Any]:
    """
    Args:
        key: the config's key, for messages.

    Raises:
        UserError: there is no config.json, or a broken one.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{key}={folder}: has no config.json; name a Hugging Face model folder") from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{key}={folder}: config.json is broken: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{key}={folder}: config.json is broken: it is no mapping")
    return config


def language_model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the text decoder alone, defaults filled in: of a model that also sees, its ``text_config``.

    Raises:
        UserError: an architecture that is not supported.
    """
    model_type = str(config.get("model_type"))
    architecture = next(iter(config.get("architectures") or [_BY_MODEL_TYPE.get(model_type, model_type)]))
    if architecture not in _DEFAULTS:
        raise UserError(
            f"config.json: the architecture {architecture} is not supported; there are {', '.join(_DEFAULTS)}"
        )
    text = {**_DEFAULTS[architecture], **config, **config.get("text_config", {}), "architectures": [architecture]}
    if architecture == "Gemma3ForConditionalGeneration":
        seen = ("text_config", "vision_config", "image_token_index", "boi_token_index", "eoi_token_index")
        text = {key: value for key, value in text.items() if key not in (*seen, "mm_tokens_per_image")}
        text |= {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
    return text


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """
    Args:
        config: config.json.

    Raises:
        UserError: an architecture, an activation or a rope scaling that is not supported, or a key that is missing.
    """
    try:
        text = language_model_config(config)
        architecture = text["architectures"][0]
        for name in _SIZES:
            most = MOST_LAYERS if name == "num_hidden_layers" else _MOST
            if text.get(name) is not None and not (isinstance(text[name], int) and 1 <= text[name] <= most):
                raise UserError(f"config.json: {name}={str(text[name])[:40]}: must be a whole number from 1 to {most}")
        return _decoder_config(architecture, text)
    except KeyError as error:
        raise UserError(f"config.json: has no {error.args[0]}, which {architecture} needs") from error
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"config.json: does not describe a model: {error}") from error


def _decoder_config(architecture: str, text: dict[str, Any]) -> DecoderConfig:
    gemma = architecture.startswith("Gemma")
    num_heads, num_layers = text["num_attention_heads"], text["num_hidden_layers"]
    head_dim = text.get("head_dim") or text["hidden_size"] // num_heads
    layer_types = _layer_types(architecture, text)
    activation = text.get("hidden_activation") or text.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"config.json: the activation {activation} is not supported; there are {', '.join(_ACTIVATIONS)}"
        )
    attention_bias = bool(text.get("attention_bias", False))
    ropes = {kind: _rope(text, kind, head_dim) for kind in set(layer_types)}
    return DecoderConfig(
        architecture=architecture,
        vocab_size=text["vocab_size"],
        num_layers=num_layers,
        embed_dim=text["hidden_size"],
        intermediate_dim=text["intermediate_size"],
        num_heads=num_heads,
        num_kv_heads=text.get("num_key_value_heads") or num_heads,
        head_dim=head_dim,
        max_seq_len=min(rope.trained_length for rope in ropes.values()),
        norm_eps=text.get("rms_norm_eps", 1e-6),
        tied_embeddings=bool(text.get("tie_word_embeddings", False)),
        qkv_bias=attention_bias,
        output_bias=attention_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=bool(text.get("mlp_bias", False)),
        activation=_ACTIVATIONS[activation],
        qk_norm=architecture.startswith(("Qwen3", "Gemma3")),
        gemma=gemma,
        fused=architecture == "Phi3ForCausalLM",
        attention_scale=(text["query_pre_attn_scalar"] if gemma else head_dim) ** -0.5,
        attention_softcap=text.get("attn_logit_softcapping"),
        logit_softcap=text.get("final_logit_softcapping"),
        windows=tuple(text["sliding_window"] if kind == "sliding_attention" else None for kind in layer_types),
        ropes=tuple(ropes[kind] for kind in layer_types),
    )


def _layer_types(architecture: str, text: dict[str, Any]) -> list[str]:
    """``full_attention`` or ``sliding_attention`` for each layer."""
    num_layers = text["num_hidden_layers"]
    if text.get("layer_types"):
        return list(text["layer_types"])
    if pattern := text.get("sliding_window_pattern"):  # every so manyth layer sees all
        return ["full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(num_layers)]
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return ["full_attention"] * num_layers
    if architecture.startswith("Qwen"):
        first = text["max_window_layers"] if text.get("use_sliding_window") else num_layers
        return ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    return ["sliding_attention"] * num_layers


def _rope(text: dict[str, Any], layer_type: str, head_dim: int) -> RopeConfig:
    # transformers 5 writes rope_parameters, for Gemma 3 by layer type; earlier versions rope_theta and rope_scaling.
    parameters = text.get("rope_parameters") or text.get("rope_scaling") or {}
    by_type = parameters.get(layer_type)
    base = text.get("rope_theta", 10_000.0)
    if by_type is not None:
        parameters = by_type
    elif layer_type == "sliding_attention" and "rope_local_base_freq" in text:
        parameters, base = {}, text["rope_local_base_freq"]
    share = parameters.get("partial_rotary_factor", text.get("partial_rotary_factor", 1.0))
    # Phi-3 keeps the length before scaling beside the scaling, not in it.
    original = text.get("original_max_position_embeddings")
    parameters = {"original_max_position_embeddings": original, **parameters} if original else parameters
    return RopeConfig.of(
        int(head_dim * share), float(parameters.get("rope_theta", base)), text["max_position_embeddings"], parameters
    )
