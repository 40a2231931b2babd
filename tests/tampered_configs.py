"""config.json of tiny models of every class, with keys added, changed, spelled as they were before, or left out."""

import copy
from collections.abc import Iterator
from typing import Any

Config = dict[str, Any]

_SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 12, "hidden_activation": "gelu_pytorch_tanh"}
_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}
BASES: dict[str, Config] = {
    "llama": {},
    "mistral": {},
    "ministral": {"head_dim": 8, "sliding_window": 8},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3": _GEMMA,  # with a vision tower: all of these stand in its text_config
    "phi3": {},
}

_ALTERNATE = ["full_attention", "sliding_attention"]
_SHORT, _LONG = [1.0, 1.1, 1.5, 2.0], [2.0, 3.0, 4.0, 5.0]
_YARN = {"rope_type": "yarn", "factor": 4.0}
_YARN_16 = _YARN | {"original_max_position_embeddings": 16}
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LONGROPE = {"rope_type": "longrope", "short_factor": _SHORT, "long_factor": _LONG}
_ROPES: dict[str, Config] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
    "llama3": _LLAMA3 | {"original_max_position_embeddings": 16},
    "llama3, no original": _LLAMA3,
    "yarn": _YARN_16,
    "yarn, no original": _YARN,
    "yarn, mscale": _YARN_16 | {"mscale": 0.7},
    "yarn, mscales": _YARN_16 | {"mscale": 0.7, "mscale_all_dim": 1.3},
    "yarn, equal mscales": _YARN_16 | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn, attention_factor": _YARN_16 | {"attention_factor": 1.5},
    "yarn, betas": _YARN_16 | {"beta_fast": 4.0, "beta_slow": 2.0},
    "yarn, not truncated": _YARN_16 | {"truncate": False},
    "longrope": _LONGROPE | {"original_max_position_embeddings": 48},
    "longrope, no original": _LONGROPE,
    "longrope, factor": _LONGROPE | {"original_max_position_embeddings": 48, "factor": 4.0},
    "longrope, attention_factor": _LONGROPE | {"original_max_position_embeddings": 48, "attention_factor": 1.5},
    "su": _LONGROPE | {"rope_type": "su"},
    "unknown": {"rope_type": "ntk", "factor": 2.0},
    "half of the dimensions": {"rope_type": "default", "partial_rotary_factor": 0.5},
    "half of the dimensions, linear": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
}
_CHANGES: dict[str, Config] = {
    "nothing": {},
    "tied": {"tie_word_embeddings": True},
    "not tied": {"tie_word_embeddings": False},
    "attention_bias": {"attention_bias": True},
    "mlp_bias": {"mlp_bias": True},
    "head_dim": {"head_dim": 16},
    "head_dim null": {"head_dim": None},
    "num_key_value_heads null": {"num_key_value_heads": None},
    "hidden_act": {"hidden_act": "gelu_pytorch_tanh"},
    "hidden_activation": {"hidden_activation": "silu"},
    "both activations": {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "silu"},
    "an activation of another kind": {"hidden_act": "relu", "hidden_activation": "relu"},
    "rms_norm_eps": {"rms_norm_eps": 0.1},
    "rms_norm_eps in text": {"rms_norm_eps": "0.1"},
    "sliding_window": {"sliding_window": 8},
    "sliding_window null": {"sliding_window": None},
    "sliding_window 0": {"sliding_window": 0, "use_sliding_window": True, "max_window_layers": 0},
    "use_sliding_window false": {"sliding_window": 8, "use_sliding_window": False},
    "use_sliding_window": {"sliding_window": 8, "use_sliding_window": True},
    "max_window_layers": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
    "layer_types": {"sliding_window": 8, "use_sliding_window": True, "layer_types": _ALTERNATE},
    "layer_types without use_sliding_window": {"sliding_window": 8, "layer_types": _ALTERNATE},
    "layer_types without a window": {"sliding_window": None, "layer_types": _ALTERNATE},
    "layer_types null": {"sliding_window": 8, "layer_types": None},
    "layer_types, too few": {"sliding_window": 8, "layer_types": _ALTERNATE[:1]},
    "layer_types of another kind": {"sliding_window": 8, "layer_types": ["chunked_attention"] * 2},
    "sliding_window_pattern": {"sliding_window": 8, "sliding_window_pattern": 2},
    "rope_local_base_freq": {"sliding_window": 8, "rope_local_base_freq": 100.0},
    "query_pre_attn_scalar": {"query_pre_attn_scalar": 64},
    "attn_logit_softcapping": {"attn_logit_softcapping": 2.0},
    "attn_logit_softcapping null": {"attn_logit_softcapping": None},
    "final_logit_softcapping": {"final_logit_softcapping": 3.0},
    "final_logit_softcapping null": {"final_logit_softcapping": None},
    "use_bidirectional_attention": {"sliding_window": 8, "use_bidirectional_attention": True},
    "use_bidirectional_attention false": {"sliding_window": 8, "use_bidirectional_attention": False},
    "is_causal false": {"is_causal": False},
    "per_layer_config": {"per_layer_config": {"0": {"num_attention_heads": 2}}},
    "pretraining_tp": {"pretraining_tp": 2, "use_cache": False, "attention_dropout": 0.1},
    "rope_theta": {"rope_theta": 500.0},
    "rope_theta in both spellings": {
        "rope_theta": 500.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "rope null": {"rope_scaling": None, "rope_parameters": None, "rope_theta": 500.0},
    "rope by layer type": {
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "yarn and linear by layer type": {
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "rope_parameters": {
            "full_attention": _YARN_16 | {"rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
        },
    },
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "partial_rotary_factor 0": {"partial_rotary_factor": 0.0},
    "partial_rotary_factor and linear": {
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "longrope, original outside": {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 48,
        "rope_scaling": _LONGROPE | {"type": "longrope"},
        "rope_theta": 500.0,
    },
    "longrope, original outside, new spelling": {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 48,
        "rope_parameters": _LONGROPE | {"rope_theta": 500.0},
    },
    "longrope, original inside, new spelling": {
        "max_position_embeddings": 128,
        "rope_parameters": _LONGROPE | {"rope_theta": 500.0, "original_max_position_embeddings": 48},
    },
    "longrope, originals that differ": {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 64,
        "rope_scaling": _LONGROPE | {"original_max_position_embeddings": 48},
    },
}


_SPELLINGS = ("rope_parameters", "rope_scaling", "rope_scaling.type")
# Classes whose rope is read by code of their own; the others share Llama's, and get these alone.
_OWN_ROPE = ("llama", "gemma3_text", "phi3")
# Classes that are another one but for these.
_DIFFER_IN = {
    "ministral": ("layer_types", "sliding_window", "head_dim"),
    "gemma3": ("tie_word_embeddings", "final_logit_softcapping", "rope_parameters", "layer_types"),
}
_OF_ALL = ("linear", "dynamic", "yarn, mscales", "longrope, factor", "half of the dimensions")


def tampered_configs(model_type: str) -> Iterator[tuple[str, Config]]:
    """Name and config.json."""
    for name, change in _CHANGES.items():
        if not change or any(key in change for key in _DIFFER_IN.get(model_type, change)):
            yield name, _config(model_type, change)
    for name, rope in _ROPES.items():
        if name in _OF_ALL or model_type in _OWN_ROPE:
            for spelling in _SPELLINGS[: 3 if name in _OF_ALL and model_type in _OWN_ROPE else 1]:
                yield f"{name} as {spelling}", _config(model_type, _spelled(rope, spelling))


def _spelled(rope: Config, spelling: str) -> Config:
    if spelling == "rope_parameters":
        return {"rope_parameters": rope | {"rope_theta": 500.0}}
    if spelling == "rope_scaling.type":
        rope = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    return {"rope_scaling": rope, "rope_theta": 500.0}


def _config(model_type: str, change: Config) -> Config:
    text = _SHAPE | BASES[model_type] | copy.deepcopy(change)
    if model_type == "gemma3":
        tied = {"tie_word_embeddings": text["tie_word_embeddings"]} if "tie_word_embeddings" in text else {}
        return {"model_type": "gemma3", "text_config": text, "vision_config": _VISION, "mm_tokens_per_image": 1} | tied
    return {"model_type": model_type} | text
