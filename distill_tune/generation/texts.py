"""Tokens that a model has written, as text."""

import inspect
from collections.abc import Sequence
from typing import Any


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, special ones such as ``<think>`` included as far as the tokenizer writes them.

    Tokens that only the model has, in a padded vocabulary, have no text.
    """
    settings = {"skip_special_tokens": False} if "skip_special_tokens" in _arguments_of(tokenizer) else {}
    try:
        return tokenizer.decode(list(tokens), **settings)
    except (IndexError, KeyError, OverflowError, ValueError):
        return tokenizer.decode([token for token in tokens if _is_known(tokenizer, token)], **settings)


def _arguments_of(tokenizer: Any) -> Sequence[str]:
    return tuple(inspect.signature(tokenizer.decode).parameters)


def _is_known(tokenizer: Any, token: int) -> bool:
    try:
        tokenizer.decode([token])
    except (IndexError, KeyError, OverflowError, ValueError):
        return False
    return True
