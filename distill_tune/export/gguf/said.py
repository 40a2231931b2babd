"""Whether a file says the model that it is of."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from distill_tune.errors import UserError
from distill_tune.models.decoder_config import DecoderConfig, decoder_config
from distill_tune.models.gguf_config import config_of
from distill_tune.models.gguf_names import ARCHITECTURES
from distill_tune.models.rope import RopeConfig

# Llama's file does not say which of the classes it was that compute the same. Scores are scaled by the weights.
_UNSAID = ("architecture", "max_seq_len", "windows", "attention_scale")


def require_same_model(
    values: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    tables: Mapping[str, numpy.ndarray],
    shape: DecoderConfig,
) -> None:
    """That our own reader makes of a file's settings what it makes of config.json: sizes, windows, rope.

    Args:
        values, shapes, tables: what the file is to say, as of :func:`~distill_tune.models.gguf_config.config_of`.
        shape: of config.json.

    Raises:
        UserError: it does not; the setting that differs.
    """
    of_rope = {name: table.tolist() for name, table in tables.items()}
    read = decoder_config(config_of(Path("the file"), ARCHITECTURES[shape.architecture], values, shapes, of_rope))
    if fault := otherwise_said(shape, read, read.max_seq_len):
        raise UserError(f"config.json: {fault}: cannot be written")


def otherwise_said(shape: DecoderConfig, read: DecoderConfig, longest: int) -> str | None:
    """The first setting of a file that is not the model's, with both values; None where all are.

    Args:
        shape: the model's.
        read: the file's, by our own reader.
        longest: up to which length windows are to be the same.
    """
    pairs = {name: (getattr(shape, name), getattr(read, name)) for name in vars(shape) if name not in _UNSAID}
    pairs["windows"] = (_within(shape, longest), _within(read, longest))
    for name, (own, said) in pairs.items():
        if differing := _differing(own, said):
            return f"{name}: GGUF says {str(differing[1])[:80]}, not {str(differing[0])[:80]}"
    return None


def _within(shape: DecoderConfig, longest: int) -> tuple[int | None, ...]:
    return tuple(window if window is not None and window < longest else None for window in shape.windows)


def _differing(own: Any, said: Any) -> tuple[Any, Any] | None:
    """Both values, of two of one length their first elements that differ; None where they are the same."""
    if isinstance(own, RopeConfig):
        return _differing((*own.frequencies, own.attention_factor), (*said.frequencies, said.attention_factor))
    if isinstance(own, tuple) and isinstance(said, tuple) and len(own) == len(said):
        return next(filter(None, map(_differing, own, said)), None)
    is_number = isinstance(own, float) and isinstance(said, float)
    is_same = math.isclose(own, said, rel_tol=1e-5) if is_number else own == said
    return None if is_same else (own, said)
