"""Tiny GGUF files."""

import json

import gguf
import numpy
from safetensors.torch import load_file

from distill_tune.models.gguf_names import gguf_name


def write_gguf(folder, path, kind, more=None):
    """The model of a folder as llama.cpp writes it: Llama's heads' rows in pairs, Gemma's norms plus 1, blocks of 32.

    Args:
        more: settings of the architecture, beside those that follow from config.json.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = config["model_type"].removesuffix("_text")
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta")} | (
        config.get("rope_scaling") or {}
    )
    rope = rope.get("full_attention", rope)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if arch != "qwen2":
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if arch == "llama":
        writer.add_rope_dimension_count(config["head_dim"])
    if arch.startswith("gemma"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for name, value in (more or {}).items():
        writer.add_key_value(f"{arch}.{name}", value, gguf.GGUFValueType.get_type(value))
    for name, value in load_file(folder / "model.safetensors").items():
        value = value.float().numpy()
        layer, module = _parts(name)
        if module in ("self_attn.q_proj", "self_attn.k_proj") and arch == "llama":
            heads = config["num_attention_heads" if "q_proj" in module else "num_key_value_heads"]
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        quantised = value.ndim == 2 and layer
        of_kind = gguf.GGMLQuantizationType[kind if quantised else "F32"]
        raw = gguf.quants.quantize(value.astype(numpy.float32), of_kind)
        writer.add_tensor(gguf_name(name, arch), raw, raw_dtype=of_kind)
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _rope_factors(config, rope))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _rope_factors(config, scaling):
    """By what each rotary frequency is divided (Llama 3.1): 1 for short waves, the factor for long ones."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    waves = 2 * numpy.pi * scaling["rope_theta"] ** (numpy.arange(0, head_dim, 2) / head_dim)
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    along = ((original / waves - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - along) / factor + along)).astype(numpy.float32)


def _parts(name):
    layer = ""
    if name.startswith("model.layers."):
        _, _, layer, name = name.split(".", 3)
    return layer, name.rpartition(".")[0]
