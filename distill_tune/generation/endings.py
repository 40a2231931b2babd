"""When an answer is done."""

from collections.abc import Collection
from typing import Any

from distill_tune.generation.repetition import ends_in_repetition
from distill_tune.generation.sampling import Sampling
from distill_tune.generation.stop_texts import StopTexts


class Endings:
    """
    Args:
        ends: tokens that end an answer, beside those of ``sampling``.
        tokenizer: that decodes; needed for ``sampling.stop``.

    Attributes:
        tokens: all that end an answer.

    Raises:
        UserError: stop texts without a tokenizer.
    """

    def __init__(self, ends: Collection[int], sampling: Sampling, tokenizer: Any) -> None:
        self.tokens = frozenset((*ends, *sampling.stop_token_ids))
        self._stop_texts = StopTexts(sampling.stop, tokenizer)
        self._max_repetitions = sampling.max_repetitions

    def reached(self, tokens: list[int], log_probs: list[float], limit: int) -> str:
        """Why an answer is done with its last token, as its finish reason; empty where it goes on.

        A stop text is taken from it.
        """
        if tokens[-1] in self.tokens or self._stop_texts.cut(tokens, log_probs):
            return "stop"
        if len(tokens) == limit:
            return "length"
        if self._max_repetitions and ends_in_repetition(tokens, self._max_repetitions):
            return "repetition"
        return ""
