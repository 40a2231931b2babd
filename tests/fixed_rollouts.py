"""Stand-ins for a generator: answers that are drawn from a request alone, and a model's, each token a whole forward."""

import random
from collections.abc import Iterator, Sequence

import torch
from tiny import VOCAB_SIZE

from distill_tune.generation import Completion, Request
from distill_tune.models import output_head
from distill_tune.models.packed_rows import PackedRows


class _AllAtOnce:
    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self.answer(request) for request in requests]

    def completions(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        yield from enumerate(self.generate(requests))

    def answer(self, request: Request) -> Completion:
        raise NotImplementedError


class FixedRollouts(_AllAtOnce):
    """Tokens that no model has written: a function of a request's stream, so of seed, step, row and sample."""

    def __init__(self, end: int = 2, most: int = 20) -> None:
        self.end, self.most, self.asked = end, most, list[Request]()

    def answer(self, request: Request) -> Completion:
        self.asked.append(request)
        draw = random.Random(request.stream)
        tokens = [draw.randrange(3, VOCAB_SIZE) for _ in range(draw.randrange(1, self.most))]
        is_cut = draw.random() < 0.25
        tokens = tokens if is_cut else [*tokens, self.end]
        return Completion(tuple(tokens), (0.0,) * len(tokens), "length" if is_cut else "stop")


class WholeForward(_AllAtOnce):
    """What a decoder has to write: no cache, one row at a time."""

    def __init__(self, model, ends, sampling, *, tokenizer=None, **others) -> None:
        self.model, self.ends, self.sampling = model, set(ends), sampling

    @torch.no_grad()
    def answer(self, request: Request) -> Completion:
        draws = torch.Generator().manual_seed(request.stream)
        tokens, log_probs = list(request.prompt), list[float]()
        for _ in range(request.max_new_tokens or self.sampling.max_new_tokens):
            rows = PackedRows((len(tokens),), torch.device("cpu"))
            hidden = self.model(torch.tensor([tokens]), input_pos=rows.positions, mask=rows)
            found = output_head(self.model).project(hidden[0, -1:]).float().log_softmax(-1)[0]
            tokens.append(int(torch.multinomial((found / self.sampling.temperature).exp(), 1, generator=draws)))
            log_probs.append(float(found[tokens[-1]]))
            if tokens[-1] in self.ends:
                break
        answer = tuple(tokens[len(request.prompt) :])
        return Completion(answer, tuple(log_probs), "stop" if answer[-1] in self.ends else "length")
