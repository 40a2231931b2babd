"""Answers of a model: many at once, from its own modules and weights."""

from distill_tune.generation.decoder import Decoder
from distill_tune.generation.requests import Completion, Generator, Request
from distill_tune.generation.sampling import Sampling, stream_of

__all__ = ["Completion", "Decoder", "Generator", "Request", "Sampling", "stream_of"]
