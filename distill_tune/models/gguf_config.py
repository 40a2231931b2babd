"""The settings in a GGUF file, llama.cpp's, as config.json would say them."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from distill_tune.errors import UserError
from distill_tune.models.gguf_names import LONG_FACTORS, OF_ROPE, ROPE_FACTORS, SHORT_FACTORS

# general.architecture, and config.json's model_type. Mistral's files are Llama's.
_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
# The size whose scores are scaled by embed_dim / heads and not by head_dim, known by its layers.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
# Settings of a head that all have its dimension; a file may leave each of them out.
_OF_A_HEAD = (
    "attention.value_length",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count",
    "rope.dimension_count_swa",
)
# What no logit depends on.
_WITHOUT_EFFECT = ("vocab_size", "pooling_type", "tensor_data_layout", "attention.causal", "rope.scaling.finetuned")


class _Settings:
    """The keys of the file's architecture. Each is taken once; what is left over must not change a number."""

    def __init__(self, path: Path, kind: str, values: Mapping[str, Any]) -> None:
        self._path, self._kind, self._left = path, kind, dict(values)

    def take(self, name: str, default: Any = None) -> Any:
        return self._left.pop(name, default)

    def needed(self, name: str) -> Any:
        if name not in self._left:
            raise UserError(f"path={self._path}: the file has no {self._kind}.{name}")
        return self._left.pop(name)

    def refuse(self, name: str, value: Any) -> UserError:
        return UserError(
            f"path={self._path}: {self._kind}.{name}={str(value)[:40]}: changes what the model says, and is not "
            "supported; take the Hugging Face folder that the file was made of"
        )

    def require_nothing_left(self) -> None:
        if self._left.get("attention.causal", True) is not True:
            raise self.refuse("attention.causal", self._left["attention.causal"])
        for name, value in self._left.items():
            if value and name not in _WITHOUT_EFFECT:
                raise self.refuse(name, value)


def gguf_config(path: Path) -> dict[str, Any]:
    """What config.json would say of the model in a GGUF file.

    Raises:
        UserError: the file cannot be read, has an architecture that is not supported, or a setting that is not.
    """
    reader = gguf_reader(path)
    tables = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in OF_ROPE}
    shapes = {tensor.name: tuple(int(size) for size in reversed(tensor.shape)) for tensor in reader.tensors}
    kind = gguf_field(reader, "general.architecture", "")
    fields = {name: field for name, field in reader.fields.items() if name.startswith(f"{kind}.")}
    values = {name.removeprefix(f"{kind}."): field.contents() for name, field in fields.items()}
    return config_of(path, kind, values, shapes, tables)


def config_of(
    path: Path,
    kind: str,
    values: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    tables: Mapping[str, list[float]],
) -> dict[str, Any]:
    """:func:`gguf_config` of what a file says.

    Args:
        path: for messages.
        kind: general.architecture.
        values: of its keys, without its name.
        shapes: of all tensors, ``[out, in]``.
        tables: those of rope.
    """
    if kind not in _MODEL_TYPES:
        raise UserError(
            f"path={path}: GGUF of the architecture {kind} is not read; there are {', '.join(_MODEL_TYPES)}"
        )
    if "token_embd.weight" not in shapes:
        raise UserError(f"path={path}: the file has no token_embd.weight; is it one part of several?")
    settings = _Settings(path, kind, values)
    width, heads = settings.needed("embedding_length"), settings.needed("attention.head_count")
    if not (isinstance(heads, int) and heads >= 1):
        raise settings.refuse("attention.head_count", heads)
    head_dim = settings.take("attention.key_length") or width // heads
    turned = settings.take("rope.dimension_count", head_dim) if kind == "phi3" else head_dim
    for name in _OF_A_HEAD:
        if (found := settings.take(name, head_dim)) != head_dim:
            raise settings.refuse(name, found)
    config = {
        "model_type": _MODEL_TYPES[kind],
        "vocab_size": shapes["token_embd.weight"][0],
        "num_hidden_layers": settings.needed("block_count"),
        "hidden_size": width,
        "intermediate_size": settings.needed("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": settings.take("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": settings.needed("context_length"),
        "rms_norm_eps": settings.needed("attention.layer_norm_rms_epsilon"),
        "rope_theta": settings.take("rope.freq_base", 10_000.0),
        "rope_scaling": None if kind == "phi3" else _rope_scaling(settings),
        "tie_word_embeddings": "output.weight" not in shapes,
    }
    if kind == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in shapes, "mlp_bias": "blk.0.ffn_up.bias" in shapes}
    if kind in _LAYERS_OF_27B:
        config |= _of_gemma(settings, kind, config)
    if kind == "phi3":
        config |= _of_phi3(settings, tables, turned / head_dim)
    if ROPE_FACTORS in tables:
        if kind != "llama" or config["rope_scaling"]:
            raise UserError(f"path={path}: {ROPE_FACTORS} beside {kind} with a scaling of its own is not supported")
        config["rope_scaling"] = _llama3_scaling(tables[ROPE_FACTORS])
    settings.require_nothing_left()
    return config


def _rope_scaling(settings: _Settings) -> dict[str, Any] | None:
    kind, older = settings.take("rope.scaling.type", "linear"), settings.take("rope.scale_linear", 1.0)
    factor = settings.take("rope.scaling.factor", older) or 1.0
    original = settings.take("rope.scaling.original_context_length")
    if (found := settings.take("rope.scaling.attn_factor", 1.0)) not in (0.0, 1.0):
        raise settings.refuse("rope.scaling.attn_factor", found)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise settings.refuse("rope.scaling.type", kind)
    yarn = {
        "original_max_position_embeddings": original,
        "beta_fast": settings.take("rope.scaling.yarn_beta_fast"),
        "beta_slow": settings.take("rope.scaling.yarn_beta_slow"),
    }
    for name in ("yarn_ext_factor", "yarn_attn_factor"):
        if (found := settings.take(f"rope.scaling.{name}", 1.0)) != 1.0:
            raise settings.refuse(f"rope.scaling.{name}", found)
    return {"rope_type": "yarn", "factor": factor} | {key: value for key, value in yarn.items() if value}


def _llama3_scaling(factors: list[float]) -> dict[str, Any]:
    """Llama 3.1's: the file has the outcome, by what each frequency is divided, and not the settings."""
    return {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": 1.0,
    }


def score_scalar(kind: str, layers: int, width: int, heads: int, head_dim: int) -> int:
    """By the root of what scores are divided in a file of this architecture, which none of its settings says.

    Args:
        kind: general.architecture.
    """
    return width // heads if layers == _LAYERS_OF_27B.get(kind) else head_dim


def _of_phi3(settings: _Settings, tables: Mapping[str, list[float]], turned: float) -> dict[str, Any]:
    """
    Args:
        turned: which part of a head rope turns.
    """
    rope: dict[str, Any] = {"rope_type": "default", "partial_rotary_factor": turned}
    original, factor = settings.take("rope.scaling.original_context_length"), settings.take("rope.scaling.attn_factor")
    if LONG_FACTORS in tables:
        rope |= {
            "rope_type": "longrope",
            "short_factor": tables[SHORT_FACTORS],
            "long_factor": tables[LONG_FACTORS],
            "original_max_position_embeddings": original,
            "attention_factor": factor,
        }
    elif factor not in (None, 0.0, 1.0):
        raise settings.refuse("rope.scaling.attn_factor", factor)
    return {"rope_scaling": rope, "sliding_window": settings.take("attention.sliding_window") or None}


def _of_gemma(settings: _Settings, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """What llama.cpp knows of Gemma 2 and 3 without a file's saying it."""
    gemma2 = kind == "gemma2"
    sizes = (config[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"))
    scalar = score_scalar(kind, *sizes)
    window = settings.take("attention.sliding_window", 4096 if gemma2 else None) or None
    more = {
        "query_pre_attn_scalar": scalar,
        "sliding_window": window,
        "final_logit_softcapping": settings.take("final_logit_softcapping", 30.0 if gemma2 else None) or None,
    }
    if gemma2:
        more["attn_logit_softcapping"] = settings.take("attn_logit_softcapping", 50.0) or None
    else:
        more["rope_local_base_freq"] = settings.take("rope.freq_base_swa", 10_000.0)
    pattern = settings.take("attention.sliding_window_pattern", 2 if gemma2 else 6)
    if not isinstance(pattern, list | tuple):
        pattern = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(config["num_hidden_layers"])]
    kinds = ["sliding_attention" if slides and window else "full_attention" for slides in pattern]
    return more | {"layer_types": kinds}


def gguf_reader(path: Path) -> Any:
    """
    Raises:
        UserError: the package gguf is not there, or the file is not of its kind.
    """
    path = path.resolve()
    found = path.stat() if path.exists() else None
    return _opened(path, found and (found.st_ino, found.st_size, found.st_mtime_ns))


@functools.cache
def _opened(path: Path, contents: tuple[int, int, int] | None) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UserError(f"path={path}: GGUF files are read by gguf; pip install 'distill-tune[gguf]'") from error

    class Reader(GGUFReader):
        """As it is, but that each of a vocabulary's words is not a memmap of its own, which takes it three times as
        long."""

        @property
        def data(self) -> Any:
            return self._mapped

        @data.setter
        def data(self, mapped: Any) -> None:
            self._mapped = mapped.view(numpy.ndarray)

    try:
        return Reader(path)
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"path={path}: cannot be read as GGUF: {error}; is the download complete?") from error


def gguf_field(reader: Any, name: str, default: Any) -> Any:
    field = reader.get_field(name)
    return default if field is None else field.contents()
