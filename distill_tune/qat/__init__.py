"""Quantisation-aware training: the student trains rounded as the format that it ships in rounds it."""

from distill_tune.qat.layers import FakeQuantized, begin_step, fake_quantized_layers, prepare, scheme_of, unquantized
from distill_tune.qat.note import NOTE, trained_for, write_note
from distill_tune.qat.schemes import Q4_0, Q8_0, Int4WeightOnly, Int8DynActInt4Weight, Scheme

__all__ = [
    "NOTE",
    "Q4_0",
    "Q8_0",
    "FakeQuantized",
    "Int4WeightOnly",
    "Int8DynActInt4Weight",
    "Scheme",
    "begin_step",
    "fake_quantized_layers",
    "prepare",
    "scheme_of",
    "trained_for",
    "unquantized",
    "write_note",
]
