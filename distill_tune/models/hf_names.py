"""The names of weights in Hugging Face's layout and in torchtune's, both ways, for models of :func:`from_hf`.

Every parameter is one tensor of the checkpoint or, where the checkpoint fuses projections (Phi-3), some rows of one.
"""

import functools
import re
from typing import NamedTuple

import torch

from distill_tune.errors import UserError
from distill_tune.models.decoder_config import DecoderConfig

Weights = dict[str, torch.Tensor]

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LANGUAGE_MODEL = re.compile(r"^(?:model\.language_model\.|language_model\.model\.)")
_BASE = "model."  # what a causal language model calls its decoder; a decoder saved alone has names without it
_NOT_OF_THE_DECODER = re.compile(r"vision_tower\.|multi_modal_projector\.|rotary_emb\.inv_freq$")

_GLOBAL = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.scale",
    "lm_head.weight": "output.weight",
}
_PROJECTIONS = {
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.down_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w3",
}
_NORMS = {"input_layernorm": "sa_norm", "self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm"}
_TWO_NORMS = {"post_attention_layernorm": "mlp_norm"}
_FOUR_NORMS = {
    "post_attention_layernorm": "sa_scale",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_scale",
}


class Part(NamedTuple):
    """A parameter of a layer, and which rows of the checkpoint's tensor it is; ``stop`` None for all."""

    name: str
    start: int = 0
    stop: int | None = None


def fused_projections(config: DecoderConfig) -> dict[str, list[Part]]:
    """The checkpoint's modules that hold several of ours, in the order of their rows."""
    if not config.fused:
        return {}
    q, kv, wide = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.intermediate_dim
    return {
        "self_attn.qkv_proj": [
            Part("attn.q_proj", 0, q),
            Part("attn.k_proj", q, q + kv),
            Part("attn.v_proj", q + kv, q + 2 * kv),
        ],
        "mlp.gate_up_proj": [Part("mlp.w1", 0, wide), Part("mlp.w3", wide, 2 * wide)],
    }


def projections(config: DecoderConfig) -> dict[str, list[Part]]:
    """The checkpoint's linear modules of a layer, and which of ours they hold."""
    fused = fused_projections(config)
    held = {part.name for parts in fused.values() for part in parts}
    return fused | {theirs: [Part(ours)] for theirs, ours in _PROJECTIONS.items() if ours not in held}


def canonical_name(name: str) -> str:
    """What a weight is called in a causal language model of transformers.

    A decoder of its own has the names without ``model.``, one inside another with a second one, and that of a model
    which also sees lies deeper: transformers reads all of these. A name that is none of them stays.
    """
    name = _LANGUAGE_MODEL.sub(_BASE, name).replace("language_model.lm_head.", "lm_head.")
    if _is_of_decoder(name):
        return name
    inside, outside = name.removeprefix(_BASE), f"{_BASE}{name}"
    return next((other for other in (inside, outside) if _is_of_decoder(other)), name)


def not_of_the_decoder(name: str) -> bool:
    """Whether a weight is a vision tower's, or a table that follows from the config."""
    return _NOT_OF_THE_DECODER.search(name) is not None


def _is_of_decoder(name: str) -> bool:
    return name in _GLOBAL or _LAYER.fullmatch(name) is not None


def hf_to_torchtune(weights: Weights, config: DecoderConfig) -> Weights:
    """Rename, and cut fused tensors into views; works on any part of a checkpoint, on meta tensors as well.

    Raises:
        UserError: a tensor that this architecture does not have.
    """
    table = _layer_table(config)
    converted: Weights = {}
    for name, tensor in weights.items():
        name = canonical_name(name)
        if not_of_the_decoder(name):
            continue
        layer = _LAYER.fullmatch(name)
        if name in _GLOBAL:
            converted[_GLOBAL[name]] = tensor
        elif layer and layer[2] in table:
            for part in table[layer[2]]:
                converted[f"layers.{layer[1]}.{part.name}"] = tensor[part.start : part.stop]
        else:
            raise UserError(f"{name} is no weight of a {config.architecture}{what_it_is(name)}")
    return converted


# Names that other programs give, and whose they are.
_FOREIGN = (
    (r"(?:.*\.)?_orig_mod\.", "torch.compile's; save the model that was compiled, not what compile returned"),
    (r"(?:.*\.)?_fsdp_wrapped_module\.", "FSDP's; gather the model's own state dict"),
    (r"(?:.*\.)?(?:_forward_module\.|_checkpoint_wrapped_module\.)", "a wrapper's; save the model inside"),
    (r"base_model\.model\.|.*\.lora_[AB]\.|.*\.base_layer\.", "PEFT's: an adapter; merge it (merge_and_unload)"),
    (r"pretrained_model\.|v_head\.", "a model with a value head (TRL); save its pretrained_model"),
    (r"module\.", "DistributedDataParallel's or DeepSpeed's; save the model inside, model.module"),
    (r"layers\.\d+\.(?:attention|feed_forward)\.|tok_embeddings\.|output\.weight", "Meta's or Mistral's own layout"),
    (r"layers\.\d+\.(?:attn|mlp|sa_norm)\b", "torchtune's own layout"),
    (r"transformer\.|gpt_neox\.|backbone\.|(?:model\.)?decoder\.", "another architecture's"),
    (r"score\.|classifier\.", "a classifier's or reward model's"),
)


def what_it_is(name: str) -> str:
    """What is known about a name that is not a decoder's."""
    for pattern, meaning in _FOREIGN:
        if re.match(pattern, name):
            return f": it is {meaning}"
    parts = name.split(".")
    for start in range(1, len(parts)):
        if _is_of_decoder(".".join(parts[start:])):
            return f": the prefix {'.'.join(parts[:start])}. is another program's; take it off all names"
    return ""


def torchtune_to_hf(weights: Weights, config: DecoderConfig) -> Weights:
    """The inverse of :func:`hf_to_torchtune`."""
    converted = {theirs: weights[ours] for theirs, ours in _GLOBAL.items() if ours in weights}
    for layer in range(config.num_layers):
        for theirs, parts in _layer_table(config).items():
            found = [weights[name] for part in parts if (name := f"layers.{layer}.{part.name}") in weights]
            if found:
                converted[f"model.layers.{layer}.{theirs}"] = found[0] if len(found) == 1 else torch.cat(found)
    return converted


@functools.cache
def _layer_table(config: DecoderConfig) -> dict[str, list[Part]]:
    """A layer's tensors in the checkpoint, by their names below ``model.layers.N.``, and the parameters in them."""
    table = {
        f"{theirs}.{kind}": [part._replace(name=f"{part.name}.{kind}") for part in parts]
        for theirs, parts in projections(config).items()
        for kind in ("weight", "bias")
    }
    norms = _NORMS | (_FOUR_NORMS if config.gemma else _TWO_NORMS)
    return table | {f"{theirs}.weight": [Part(f"{ours}.scale")] for theirs, ours in norms.items()}
