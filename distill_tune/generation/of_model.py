"""Which kind of generator a model takes."""

from collections.abc import Collection
from typing import Any

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.generation.decoder import Decoder
from distill_tune.generation.requests import Generator
from distill_tune.generation.sampling import Sampling
from distill_tune.generation.server import Server, ServerDecoder

from torchtune.modules import TransformerDecoder


def generator_of(
    model: Any,
    ends: Collection[int],
    sampling: Sampling | None = None,
    *,
    tokenizer: Any = None,
    cache_bytes: int | None = None,
    max_slots: int = 64,
    known_tokens: int | None = None,
) -> Generator:
    """
    Args:
        model: of torchtune's modules, of transformers, or a :class:`Server`.
        ends: tokens that end an answer.
        tokenizer: needed for ``sampling.stop``.
        cache_bytes: of the key-value cache; see :class:`Decoder`, which alone heeds it.
        max_slots: rows at a time, on this machine.
        known_tokens: only the first so many of the model's tokens are chosen from, on this machine; None for all.

    Raises:
        UserError: stop texts without a tokenizer.
    """
    if isinstance(model, Server):
        return ServerDecoder(model, ends, sampling, tokenizer=tokenizer)
    here: Any = {"tokenizer": tokenizer, "max_slots": max_slots, "known_tokens": known_tokens}
    if isinstance(model, TransformerDecoder):
        return Decoder(model, ends, sampling, cache_bytes=cache_bytes, **here)
    from distill_tune.generation.hf import HuggingFaceDecoder  # and transformers with it

    return HuggingFaceDecoder(model, ends, sampling, **here)
