"""Answers of a model: many at once, from its own modules and weights, and the rows that are made of them."""

from distill_tune.generation.decoder import Decoder
from distill_tune.generation.duplicates import Decontaminated, Duplicates
from distill_tune.generation.ends import ends_of
from distill_tune.generation.filters import Finished, Length, Repetition, Scripts
from distill_tune.generation.of_model import generator_of
from distill_tune.generation.record import Record, SampleFile
from distill_tune.generation.requests import Completion, Generator, Request
from distill_tune.generation.sampling import Sampling, stream_of
from distill_tune.generation.scores import Likelihood, Match
from distill_tune.generation.server import Server

__all__ = [
    "Completion",
    "Decoder",
    "Decontaminated",
    "Duplicates",
    "Finished",
    "Generator",
    "Length",
    "Likelihood",
    "Match",
    "Record",
    "Repetition",
    "Request",
    "SampleFile",
    "Sampling",
    "Scripts",
    "Server",
    "ends_of",
    "generator_of",
    "stream_of",
]
