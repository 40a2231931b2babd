"""A request while it is being answered, by whichever generator."""

import dataclasses

from distill_tune.errors import UserError
from distill_tune.generation.endings import Endings
from distill_tune.generation.requests import Completion, Request
from distill_tune.generation.sampling import Sampling


@dataclasses.dataclass
class AnsweredRow:
    """
    Attributes:
        number: among the requests.
        limit: tokens of its answer at most.
        finish_reason: empty until it has ended or is cut.
    """

    number: int
    prompt: tuple[int, ...]
    stream: int
    limit: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[float] = dataclasses.field(default_factory=list)
    finish_reason: str = ""

    @classmethod
    def of(cls, number: int, request: Request, sampling: Sampling, longest: int | None) -> "AnsweredRow":
        """
        Raises:
            UserError: as :func:`room_for`.
        """
        return cls(number, tuple(request.prompt), request.stream, room_for(number, request, sampling, longest))

    @property
    def completion(self) -> Completion:
        return Completion(tuple(self.tokens), tuple(self.log_probs), self.finish_reason)

    def add(self, token: int, log_prob: float, endings: Endings) -> None:
        """The next token, by which the answer may end."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.finish_reason = endings.reached(self.tokens, self.log_probs, self.limit)


def room_for(number: int, request: Request, sampling: Sampling, longest: int | None, reader: str = "the model") -> int:
    """Tokens of an answer at most.

    Args:
        longest: tokens of a prompt and its answer that ``reader`` reads; None where it does not say.

    Raises:
        UserError: a prompt that is empty, or leaves no room.
    """
    prompt, wanted = len(request.prompt), request.max_new_tokens or sampling.max_new_tokens
    if not prompt:
        raise UserError(f"prompt {number + 1} has no tokens: there is nothing to go on from")
    if longest is None:
        return wanted
    if prompt >= longest:
        raise UserError(
            f"prompt {number + 1} has {prompt} tokens; {reader} reads {longest} at most, its answer included"
        )
    return min(wanted, longest - prompt)
