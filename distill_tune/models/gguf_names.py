"""The names of weights in GGUF files and in Hugging Face folders, and how rows of heads stand in each: both ways."""

import re
from collections.abc import Mapping

import torch

# general.architecture of a file, for each class of transformers. Mistral's files are Llama's.
ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MinistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
}
# Tables that follow from the settings, and are no weights.
ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS = (
    f"{name}.weight" for name in ("rope_freqs", "rope_factors_short", "rope_factors_long")
)
OF_ROPE = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OF_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OF_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_WEIGHT = re.compile(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)")
_TURNED = re.compile(r"self_attn\.([qk])_proj")


def hf_name(name: str, architecture: str) -> str | None:
    """Hugging Face's name of a file's tensor; None where the architecture has none of that name.

    Args:
        architecture: the file's.
    """
    found = _TENSOR.fullmatch(name)
    if found is None or found[2] not in (names := _names(architecture)):
        return None
    return f"{f'model.layers.{found[1]}.' if found[1] else ''}{names[found[2]]}.{found[3]}"


def gguf_name(name: str, architecture: str) -> str | None:
    """The inverse of :func:`hf_name`."""
    found = _WEIGHT.fullmatch(name)
    theirs = {hf: gguf for gguf, hf in _names(architecture).items()}
    if found is None or found[2] not in theirs:
        return None
    return f"{f'blk.{found[1]}.' if found[1] else ''}{theirs[found[2]]}.{found[3]}"


def adds_one_to(name: str, architecture: str) -> bool:
    """Whether a file has 1 + w of this weight of Hugging Face's: Gemma's norms weigh by the sum."""
    return architecture.startswith("gemma") and name.endswith("norm.weight")


def turned_heads(name: str, architecture: str, config: Mapping[str, int]) -> int | None:
    """Of Llama's q and k the rows of a head stand in pairs in a file, in halves in Hugging Face's weight of this name.

    Args:
        config: config.json, or what a file says in its place.

    Returns:
        How many heads it has; None for a weight whose rows stand in one order in both.
    """
    found = _TURNED.search(name) if architecture == "llama" else None
    return found and config["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]


def in_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a file in Hugging Face's order: ``[out, ...] -> [out, ...]``."""
    return rows.view(heads, len(rows) // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The inverse of :func:`in_halves`."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _names(architecture: str) -> dict[str, str]:
    return _NAMES | (_OF_GEMMA if architecture.startswith("gemma") else _OF_PHI3 if architecture == "phi3" else {})
