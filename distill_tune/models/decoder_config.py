"""config.json of a Hugging Face folder, read as transformers' own class reads it, into what a decoder is built from."""

import contextlib
import copy
import dataclasses
import importlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from distill_tune.config.values import MOST_LAYERS
from distill_tune.errors import UserError
from distill_tune.models.rope import RopeConfig

# transformers' class for each model_type.
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma3": "Gemma3ForConditionalGeneration",  # with a vision tower, which is left out
    "phi3": "Phi3ForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# Of a model that also sees, what is read outside of its text_config.
_OUTSIDE = ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version")
_OF_CLASSIFIERS = ("id2label", "label2id", "num_labels", "problem_type")


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
_MOST_HEAD_DIM = 2**16
_SIZES = {
    "head_dim": _MOST_HEAD_DIM,
    "hidden_size": _MOST,
    "intermediate_size": _MOST,
    "max_position_embeddings": _MOST,
    "num_attention_heads": _MOST,
    "num_hidden_layers": MOST_LAYERS,
    "num_key_value_heads": _MOST,
    "vocab_size": _MOST,
}


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
    """config.json of the text decoder alone: of a model that also sees, its ``text_config``.

    Raises:
        UserError: an architecture that is not supported, or another than that of ``model_type``.
    """
    model_type, named = config.get("model_type"), config.get("architectures")
    first = named[0] if named and isinstance(named, list) else None
    architecture = str(first or _ARCHITECTURES.get(str(model_type), model_type))
    kinds = {name: kind for kind, name in _ARCHITECTURES.items()}
    if architecture not in kinds:
        raise UserError(
            f"config.json: the architecture {architecture[:60]} is not supported; there are {', '.join(kinds)}"
        )
    if model_type not in (None, kinds[architecture]):
        raise UserError(f"config.json: model_type={str(model_type)[:60]}: is not that of a {architecture}")
    if architecture != "Gemma3ForConditionalGeneration":
        return {**config, "architectures": [architecture], "model_type": kinds[architecture]}
    text = config.get("text_config") or {}
    if not isinstance(text, dict):
        raise UserError("config.json: text_config is no mapping")
    return {
        **{key: config[key] for key in _OUTSIDE if key in config},
        **text,
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "final_logit_softcapping": None,  # the class that sees has none, whatever its text_config says
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
    }


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """What transformers' class makes of config.json: its defaults, and no key that it does not read.

    Args:
        config: config.json.

    Raises:
        UserError: an architecture or a value that is not supported, or one that transformers does not take either.
    """
    text = language_model_config(config)
    architecture = text["architectures"][0]
    for name, most in _SIZES.items():
        value = text.get(name)
        if value is not None and not (isinstance(value, int) and 1 <= value <= most):
            raise UserError(f"config.json: {name}={str(value)[:40]}: must be a whole number from 1 to {most}")
    if text.get("per_layer_config"):
        raise UserError("config.json: per_layer_config: layers that differ in their settings are not supported")
    try:
        with _quiet_transformers():
            return _decoder_config(*_as_transformers_reads(architecture, text))
    except UserError:
        raise
    except Exception as error:  # a broken value may end anywhere in transformers
        reason = " ".join(str(error.args[0] if error.args else type(error).__name__).split())[:200]
        missing = isinstance(error, KeyError) and " " not in reason
        told = f"has no {reason}" if missing else f"does not describe a model: {reason}"
        raise UserError(f"config.json: {told}") from error


def rope_parameters(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rope settings of each kind of layer that :func:`decoder_config` has read: ``rope_type``, ``rope_theta``...

    Args:
        config: config.json.
    """
    text = language_model_config(config)
    with _quiet_transformers():
        _, read = _as_transformers_reads(text["architectures"][0], text)
    declared = {field.name: getattr(read, field.name) for field in dataclasses.fields(read)}
    return {kind: dict(_rope_parameters(read, kind)) for kind in set(_layer_types(declared))}


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its remarks on keys that its class does not read."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _as_transformers_reads(architecture: str, text: dict[str, Any]) -> tuple[str, Any]:
    """Name of the class, and its configuration with all defaults."""
    from transformers import CONFIG_MAPPING

    model_type = text["model_type"]
    if model_type == "mistral" and "layer_types" in text:  # as AutoConfig has it
        model_type, architecture = "ministral", "MinistralForCausalLM"
    read = {key: value for key, value in text.items() if key not in _OF_CLASSIFIERS}
    return architecture, CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(read))


def _decoder_config(architecture: str, read: Any) -> DecoderConfig:
    # A class reads what it declares, no other key of config.json; but for head_dim.
    declared = {field.name: getattr(read, field.name) for field in dataclasses.fields(read)}
    num_heads, num_kv_heads = read.num_attention_heads, read.num_key_value_heads
    head_dim = getattr(read, "head_dim", None) or read.hidden_size // num_heads
    _refuse_unsupported(read, declared, head_dim)
    layer_types = _layer_types(declared)
    ropes = {kind: _rope(architecture, read, kind, head_dim) for kind in set(layer_types)}
    attention_bias = declared.get("attention_bias", architecture == "Qwen2ForCausalLM")
    return DecoderConfig(
        architecture=architecture,
        vocab_size=read.vocab_size,
        num_layers=read.num_hidden_layers,
        embed_dim=read.hidden_size,
        intermediate_dim=read.intermediate_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_seq_len=min(_trained_length(read, kind) for kind in ropes),
        norm_eps=read.rms_norm_eps,
        tied_embeddings=read.tie_word_embeddings,
        qkv_bias=attention_bias,
        output_bias=attention_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=declared.get("mlp_bias", False),
        activation=_ACTIVATIONS[_activation(declared)],
        qk_norm=architecture.startswith(("Qwen3", "Gemma3")),
        gemma=architecture.startswith("Gemma"),
        fused=architecture == "Phi3ForCausalLM",
        attention_scale=declared.get("query_pre_attn_scalar", head_dim) ** -0.5,
        # Gemma 3 declares one for its scores too, and does without.
        attention_softcap=read.attn_logit_softcapping if architecture == "Gemma2ForCausalLM" else None,
        logit_softcap=declared.get("final_logit_softcapping"),
        windows=tuple(read.sliding_window if kind == "sliding_attention" else None for kind in layer_types),
        ropes=tuple(ropes[kind] for kind in layer_types),
    )


def _activation(declared: dict[str, Any]) -> Any:
    return declared.get("hidden_activation", declared.get("hidden_act"))


def _refuse_unsupported(read: Any, declared: dict[str, Any], head_dim: int) -> None:
    """What transformers would compute and our decoder cannot."""
    num_heads, num_kv_heads = read.num_attention_heads, read.num_key_value_heads
    if num_heads % num_kv_heads:
        raise UserError(
            f"config.json: num_attention_heads={num_heads}: is no multiple of num_key_value_heads={num_kv_heads}"
        )
    if not 1 <= head_dim <= _MOST_HEAD_DIM:
        raise UserError(f"config.json: heads of {head_dim} dimensions: must be from 1 to {_MOST_HEAD_DIM}")
    if not getattr(read, "is_causal", True):
        raise UserError("config.json: is_causal=False: attention to later tokens is not supported")
    if declared.get("use_bidirectional_attention"):
        raise UserError("config.json: use_bidirectional_attention=True: attention to later tokens is not supported")
    if _activation(declared) not in _ACTIVATIONS:
        name = str(_activation(declared))[:40]
        raise UserError(f"config.json: the activation {name} is not supported; there are {', '.join(_ACTIVATIONS)}")
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"):
        if declared.get(key) is not None and not declared[key] > 0:
            raise UserError(f"config.json: {key}={declared[key]}: must be above 0")


def _layer_types(declared: dict[str, Any]) -> list[str]:
    """``full_attention`` or ``sliding_attention`` for each layer."""
    window = declared.get("sliding_window")
    everywhere = "full_attention" if window is None else "sliding_attention"
    layer_types = declared.get("layer_types") or [everywhere] * declared["num_hidden_layers"]
    kinds = ("full_attention", "sliding_attention")
    if other := [kind for kind in layer_types if kind not in kinds]:
        raise UserError(f"config.json: layer_types: {other[0]} is not supported; there are {', '.join(kinds)}")
    if "sliding_attention" in layer_types and not (isinstance(window, int) and window >= 1):
        raise UserError(f"config.json: sliding_window={window}: layers of sliding_attention need one of 1 or more")
    return layer_types


def _rope(architecture: str, read: Any, layer_type: str, head_dim: int) -> RopeConfig:
    """What the class's own rotary embedding turns by."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kinds = ("default", *ROPE_INIT_FUNCTIONS)
    if (kind := _rope_parameters(read, layer_type)["rope_type"]) not in kinds:
        raise UserError(f"config.json: rope scaling {str(kind)[:40]} is not supported; there are {', '.join(kinds)}")
    modeling = importlib.import_module(type(read).__module__.replace(".configuration_", ".modeling_"))
    with torch.device("cpu"):
        rotary = getattr(modeling, architecture.replace("ForCausalLM", "RotaryEmbedding"))(read)
    prefix = f"{layer_type}_" if _by_layer_type(read) else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq").tolist()
    dim = 2 * len(frequencies)
    if dim > head_dim or (dim < head_dim and architecture != "Phi3ForCausalLM"):
        raise UserError(
            f"config.json: rope turns {dim} of a head's {head_dim} dimensions (partial_rotary_factor?), which "
            f"{architecture} cannot do"
        )
    if not all(map(math.isfinite, frequencies)):
        raise UserError("config.json: rope's frequencies are no numbers; rope_theta or the scaling is wrong")
    return RopeConfig(tuple(frequencies), float(getattr(rotary, f"{prefix}attention_scaling")))


def _by_layer_type(read: Any) -> bool:
    return type(read).__name__ == "Gemma3TextConfig"


def _rope_parameters(read: Any, layer_type: str) -> dict[str, Any]:
    return read.rope_parameters[layer_type] if _by_layer_type(read) else read.rope_parameters


def _trained_length(read: Any, layer_type: str) -> int:
    """The longest sequence that the frequencies serve: beyond it longrope and dynamic scaling have others."""
    parameters = _rope_parameters(read, layer_type)
    if parameters["rope_type"] != "longrope":
        return read.max_position_embeddings
    return min(parameters["original_max_position_embeddings"], read.max_position_embeddings)
