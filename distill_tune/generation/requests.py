"""What a generator is asked, and what it answers."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from distill_tune.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """
    Attributes:
        prompt: token ids.
        stream: of random numbers; see :func:`~distill_tune.generation.sampling.stream_of`.
        max_new_tokens: default the sampling's.
    """

    prompt: Sequence[int]
    stream: int = 0
    max_new_tokens: int | None = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """
    Attributes:
        tokens: of the answer, with the end token where it ended by one.
        log_probs: of each, by the model itself: at temperature 1, before any filter.
        finish_reason: ``stop`` where it ended, ``length`` or ``repetition`` where it was cut.
    """

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish_reason: str


def require_numbers(completion: Completion, model: str) -> None:
    """
    Args:
        model: that has answered, for the message.

    Raises:
        UserError: its logits are no numbers.
    """
    if any(map(math.isnan, completion.log_probs)):
        raise UserError(
            f"{model}: its logits are no numbers (NaN), so what it answers means nothing; its weights are broken, or "
            "need another dtype"
        )


class Generator(Protocol):
    """What answers prompts: :class:`Decoder`, a model of transformers, a server."""

    def completions(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Each request's number and completion, as they are done."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All completions, in the order of the requests.

        Raises:
            UserError: as :meth:`completions`.
        """
        found = dict(self.completions(requests))
        return [found[number] for number in range(len(requests))]
