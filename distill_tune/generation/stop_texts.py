"""Texts at which an answer ends, looked for as its tokens come."""

from collections.abc import Sequence
from typing import Any

from distill_tune.errors import UserError
from distill_tune.generation.texts import text_of

_TOKENS_BEFORE = 8  # a text may begin within a token, and a token within a character


class StopTexts:
    """
    Args:
        texts: an answer ends before the first of them.
        tokenizer: that decodes.

    Raises:
        UserError: texts without a tokenizer.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any) -> None:
        if texts and tokenizer is None:
            raise UserError(f"stop={list(texts)}: stop texts need a tokenizer")
        self._texts, self._tokenizer = tuple(texts), tokenizer
        # SentencePiece leaves the space of a first token out: texts are looked for behind another one.
        self._before = tokenizer.encode("a", add_bos=False, add_eos=False)[-1:] if texts else []
        self._text_before = text_of(tokenizer, self._before) if texts else ""
        self._longest = max((len(text.encode()) for text in texts), default=0)

    def cut(self, tokens: list[int], log_probs: list[float]) -> bool:
        """Take from an answer the text at which it ends and what follows, if it is there; whether it was.

        The token in which the text begins is taken too.
        """
        if not self._texts:
            return False
        tail = tokens[-(self._longest + _TOKENS_BEFORE) :]  # a token has a byte at least
        if not self._found(tail):
            return False
        start = len(tokens) - len(tail)
        kept = next(kept for kept in range(len(tail)) if self._found(tail[: kept + 1]))
        # Back to where the text had not begun: the shortest tail of what is left that still completes it.
        first = next(first for first in range(kept, -1, -1) if self._found(tail[first : kept + 1]))
        del tokens[start + first :], log_probs[start + first :]
        return True

    def _found(self, tokens: Sequence[int]) -> bool:
        decoded = text_of(self._tokenizer, [*self._before, *tokens]).removeprefix(self._text_before)
        return any(text in decoded for text in self._texts)
