"""Answers of a server to which a student's weights are sent, beside the student's own."""

from collections.abc import Callable
from typing import Any

from distill_tune.generation import Completion, Decoder, Request, Sampling
from distill_tune.generation.server import ServerDecoder

LIKELIEST = Sampling(max_new_tokens=6, temperature=0)
REQUESTS = [Request([5, 6, 7]), Request([60, 61])]


def assert_answers_follow(
    decoder: ServerDecoder, served: Any, model: Any, learn: Callable[[Any], None]
) -> list[Completion]:
    """After each of two steps they are the student's, and others than before; the last ones."""
    before = decoder.generate(REQUESTS)
    for step in (1, 2):
        learn(model)
        served.send(model, step)
        wanted = Decoder(model, {2}, LIKELIEST).generate(REQUESTS)
        found = decoder.generate(REQUESTS)
        assert [answer.tokens for answer in found] == [answer.tokens for answer in wanted]
        assert [answer.tokens for answer in found] != [answer.tokens for answer in before]
        before = found
    return before
