"""CUDA graphs over a stand-in that runs a captured step again: sizes, idle rows, and what a capture leaves."""

import pytest
import torch
from tiny_decoders import BUILT, FREE, PROMPTS, REQUESTS, built, tokens_of

from distill_tune.generation import Decoder, Request, Sampling
from distill_tune.generation import decoder as decoder_module
from distill_tune.generation.graphs import StepGraphs


@pytest.fixture
def captures(monkeypatch):
    """A graph records kernels and runs none; replayed, it writes to the same memory at each time."""
    sizes: list[tuple[int, int]] = []

    def capture(step, rows, length):
        sizes.append((rows, length))
        found = tuple(torch.zeros(rows, dtype=dtype) for dtype in (torch.int64, torch.float32))

        def replay():
            for kept, new in zip(found, step(rows, length), strict=True):
                kept.copy_(new)

        return replay, found

    monkeypatch.setattr(decoder_module, "StepGraphs", lambda *arguments: StepGraphs(*arguments, capture=capture))
    monkeypatch.setattr(decoder_module, "_is_captured", lambda device: True)
    monkeypatch.setattr(decoder_module, "_steps_between_looks", lambda device: 8)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: None)
    return sizes


def test_answers_are_those_without_graphs(captures, monkeypatch):
    model = built("llama")
    requests = [Request(prompt, row, 3 + 7 * row) for row, prompt in enumerate([*PROMPTS, [8] * 30, [4]])]
    found = Decoder(model, {20}, FREE, max_slots=3).generate(requests)
    assert captures
    monkeypatch.undo()
    assert tokens_of(found) == tokens_of(Decoder(model, {20}, FREE, max_slots=3).generate(requests))


def test_a_graph_serves_all_batches_of_its_size(captures):
    model = built("llama")
    Decoder(model, {}, FREE).generate(REQUESTS)
    assert captures == [(3, 29)]


@pytest.mark.parametrize("name", BUILT)
def test_steps_behind_an_end_stay_within_what_the_model_reads(name, captures, monkeypatch):
    model, requests = built(name), [Request([5] * 60, 1), Request([7] * 5, 2)]
    found = Decoder(model, {}, Sampling(80, temperature=1.5)).generate(requests)
    assert [len(of.tokens) for of in found] == [4, 59]
    monkeypatch.undo()
    assert tokens_of(found) == tokens_of(Decoder(model, {}, Sampling(80, temperature=1.5)).generate(requests))
