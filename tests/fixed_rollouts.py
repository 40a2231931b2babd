"""A stand-in for a generator: answers that are drawn from a request alone."""

import random
from collections.abc import Iterator, Sequence

from tiny import VOCAB_SIZE

from distill_tune.generation import Completion, Request


class FixedRollouts:
    """Tokens that no model has written: a function of a request's stream, so of seed, step, row and sample."""

    def __init__(self, end: int = 2, most: int = 20) -> None:
        self.end, self.most, self.asked = end, most, list[Request]()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self.answer(request) for request in requests]

    def completions(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        yield from enumerate(self.generate(requests))

    def answer(self, request: Request) -> Completion:
        self.asked.append(request)
        draw = random.Random(request.stream)
        tokens = [draw.randrange(3, VOCAB_SIZE) for _ in range(draw.randrange(1, self.most))]
        is_cut = draw.random() < 0.25
        tokens = tokens if is_cut else [*tokens, self.end]
        return Completion(tuple(tokens), (0.0,) * len(tokens), "length" if is_cut else "stop")
