"""What a GGUF file says of a model beside its weights and its tokenizer, in the keys of llama.cpp."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy

from distill_tune.errors import UserError
from distill_tune.models.decoder_config import DecoderConfig, language_model_config, rope_parameters
from distill_tune.models.gguf_config import score_scalar
from distill_tune.models.gguf_names import ARCHITECTURES, LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS

_SLIDING, _FULL = "sliding_attention", "full_attention"
_BIASED = ("llama", "qwen2")
_PHI3 = re.compile("(phi)-?3", re.IGNORECASE)
_ELSEWHERE = "hand the folder to llama.cpp's own converter with --llama-cpp DIR"


def architecture_of(shape: DecoderConfig) -> str:
    """general.architecture of the model's file.

    Raises:
        UserError: llama.cpp computes something else, or GGUF has no way to say it.
    """
    kind = ARCHITECTURES.get(shape.architecture)
    if kind is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"config.json: {shape.architecture} is not written as GGUF, but {known}; {_ELSEWHERE}")
    fault = next(iter(_faults(shape, kind)), None)
    if fault is not None:
        raise UserError(f"config.json: {fault}, which GGUF's {kind} cannot say; {_ELSEWHERE}")
    return kind


def _faults(shape: DecoderConfig, kind: str) -> Iterator[str]:
    if shape.activation != ("gelu_tanh" if kind.startswith("gemma") else "silu"):
        yield f"the activation {shape.activation}"
    if (shape.qkv_bias or shape.mlp_bias) and kind not in _BIASED:
        yield "biases"
    if kind == "gemma2" and not shape.tied_embeddings:
        yield "an output layer apart from the embeddings"
    if kind == "gemma2" and not (shape.attention_softcap and shape.logit_softcap):
        yield "scores or logits without a softcap"
    if kind == "phi3" and shape.head_dim * shape.num_heads != shape.embed_dim:
        yield f"{shape.num_heads} heads of {shape.head_dim} in a width of {shape.embed_dim}"
    if kind == "gemma3" and not any(shape.windows):
        yield "no layer with a sliding window"
    if kind.startswith("gemma") and _period(shape) is None:
        yield f"layers that slide in no period ({_kinds(shape)})"


def context_length(config: Mapping[str, Any], shape: DecoderConfig) -> int:
    """Up to which length llama.cpp computes what transformers does: to the window's, where it leaves windows out."""
    # Beyond the length that our decoder serves it takes Phi-3's other factors.
    longest = max(shape.max_seq_len, language_model_config(config).get("max_position_embeddings") or 0)
    windows = [window for window in shape.windows if window is not None]
    if ARCHITECTURES[shape.architecture].startswith("gemma") or not windows:
        return longest
    return min(longest, *windows)


def settings(config: Mapping[str, Any], shape: DecoderConfig) -> dict[str, Any]:
    """The keys of the architecture, without its name, and their values: whole numbers, fractions, texts.

    Args:
        config: config.json.
        shape: what :func:`~distill_tune.models.decoder_config` reads in it.

    Raises:
        UserError: as of :func:`architecture_of`, or rope is scaled in a way that GGUF cannot say.
    """
    kind, parameters = architecture_of(shape), rope_parameters(config)
    rope = parameters.get(_FULL) or parameters[_SLIDING]
    found = {
        "block_count": shape.num_layers,
        "context_length": context_length(config, shape),
        "embedding_length": shape.embed_dim,
        "feed_forward_length": shape.intermediate_dim,
        "attention.head_count": shape.num_heads,
        "attention.head_count_kv": shape.num_kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": float(shape.norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": shape.vocab_size,
    }
    if kind in ("llama", "phi3"):
        found["rope.dimension_count"] = 2 * len(shape.ropes[0].frequencies)
    if kind.startswith("gemma"):
        found |= _of_gemma(shape, kind, parameters)
    if kind == "phi3":
        found |= _of_phi3(shape, rope)
    else:
        found |= _scaling(rope, shape, kind)
    return found


def _of_gemma(shape: DecoderConfig, kind: str, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if windows := [window for window in shape.windows if window is not None]:
        found["attention.sliding_window"] = windows[0]
    if (period := _period(shape)) != (2 if kind == "gemma2" else 6):
        found["attention.sliding_window_pattern"] = period
    if shape.attention_softcap:
        found["attn_logit_softcapping"] = float(shape.attention_softcap)
    if shape.logit_softcap:
        found["final_logit_softcapping"] = float(shape.logit_softcap)
    if kind == "gemma3" and _SLIDING in parameters:
        local = parameters[_SLIDING]
        if local["rope_type"] != "default":
            raise _not_said(f"rope_type={local['rope_type']} in layers that slide", kind)
        found["rope.freq_base_swa"] = float(local["rope_theta"])
    return found


def _period(shape: DecoderConfig) -> int | None:
    """Every so many layers one sees all; None where they are in no such order."""
    slides = [window is not None for window in shape.windows]
    length = len(slides)
    usual = 2 if shape.architecture.startswith("Gemma2") else 6
    return next(
        (
            period
            for period in (usual, *range(1, length + 2))
            if slides == [layer % period < period - 1 for layer in range(length)]
        ),
        None,
    )


def _kinds(shape: DecoderConfig) -> str:
    return "".join("s" if window else "f" for window in shape.windows)


def _of_phi3(shape: DecoderConfig, rope: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"attention.sliding_window": shape.windows[0] or 0}
    original = rope.get("original_max_position_embeddings") or shape.max_seq_len
    found["rope.scaling.original_context_length"] = int(original)
    if rope["rope_type"] == "longrope":
        found["rope.scaling.attn_factor"] = float(shape.ropes[0].attention_factor)
    elif rope["rope_type"] != "default":
        raise _not_said(f"rope_type={rope['rope_type']}", "phi3")
    return found


def _scaling(rope: Mapping[str, Any], shape: DecoderConfig, kind: str) -> dict[str, Any]:
    scaling = rope["rope_type"]
    if scaling == "default" or (scaling == "llama3" and kind == "llama"):
        return {}
    if scaling == "linear":
        return {"rope.scaling.type": scaling, "rope.scaling.factor": float(rope["factor"])}
    if scaling != "yarn":
        raise _not_said(f"rope_type={scaling}", kind)
    # YaRN, arXiv 2309.00071, §3.4: llama.cpp works the factor of queries and keys out by itself.
    own = 0.1 * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0
    used = max(turned.attention_factor for turned in shape.ropes)
    if not math.isclose(used, own, rel_tol=1e-6) or not rope.get("truncate", True):
        raise _not_said(f"rope_type=yarn with attention_factor={used:g}, truncate={rope.get('truncate', True)}", kind)
    return {
        "rope.scaling.type": scaling,
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
        "rope.scaling.yarn_beta_fast": float(rope.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(rope.get("beta_slow") or 1.0),
    }


def _not_said(what: str, kind: str) -> UserError:
    return UserError(f"config.json: {what}, which GGUF's {kind} cannot say; {_ELSEWHERE}")


def rope_tensors(config: Mapping[str, Any], shape: DecoderConfig) -> dict[str, numpy.ndarray]:
    """By what each rotary frequency is divided, ``[half]``, float32, where a file has a table of them."""
    rope = next(iter(rope_parameters(config).values()))
    if rope["rope_type"] == "longrope":
        return {
            LONG_FACTORS: numpy.array(rope["long_factor"], numpy.float32),
            SHORT_FACTORS: numpy.array(rope["short_factor"], numpy.float32),
        }
    if rope["rope_type"] != "llama3":
        return {}
    frequencies = numpy.array(shape.ropes[0].frequencies)
    plain = float(rope["rope_theta"]) ** -(numpy.arange(len(frequencies)) / len(frequencies))
    return {ROPE_FACTORS: (plain / frequencies).astype(numpy.float32)}


def score_factor(shape: DecoderConfig) -> float:
    """By what queries are multiplied so that scores which llama.cpp scales are those of the model.

    It scales Gemma's by the number of layers, which a pruned student may have another of.
    """
    kind = ARCHITECTURES[shape.architecture]
    scalar = score_scalar(kind, shape.num_layers, shape.embed_dim, shape.num_heads, shape.head_dim)
    factor = shape.attention_scale * scalar**0.5
    return 1.0 if math.isclose(factor, 1.0, rel_tol=1e-9) else factor


def add_description(writer: Any, folder: Path, name: str, parameters: int, has_s: bool) -> None:
    """general.*: name, size, licence and lineage of the model card, sampling of generation_config.json.

    Args:
        name: of the model, as a hub would have it: ``SmolLM2-135M-Instruct``.
        parameters: how many weights the file has.
        has_s: whether ``</s>`` is one of its tokens.
    """
    import gguf

    if not has_s:  # llama.cpp takes a model of this name for one that has it, and does not open it
        name = _PHI3.sub(r"\1 3", name)
    described = gguf.Metadata.load(None, folder, None, parameters)
    parts = gguf.Metadata.get_model_id_components(name, parameters)
    described.name = gguf.Metadata.id_to_title(name)
    described.basename, described.finetune, described.version, described.size_label = parts[2:]
    described.size_label = described.size_label or gguf.size_label(parameters, parameters, 0, 0)
    writer.add_type(gguf.GGUFType.MODEL)
    described.set_gguf_meta_model(writer)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
