"""Whether a file will say the model that it is written of."""

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
    pairs = {name: (getattr(shape, name), getattr(read, name)) for name in vars(shape) if name not in _UNSAID}
    pairs["windows"] = (_within(shape, read.max_seq_len), _within(read, read.max_seq_len))
    for name, (own, said) in pairs.items():
        if not _equal(own, said):
            raise UserError(f"config.json: {name}: GGUF says {str(said)[:80]}, not {str(own)[:80]}: cannot be written")


def _within(shape: DecoderConfig, longest: int) -> tuple[int | None, ...]:
    return tuple(window if window is not None and window < longest else None for window in shape.windows)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-5)
    if isinstance(one, RopeConfig):
        return _equal((*one.frequencies, one.attention_factor), (*other.frequencies, other.attention_factor))
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other
