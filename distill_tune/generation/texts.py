"""Tokens that a model has written, as text."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any


def text_of(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, special ones such as ``<think>`` included as far as the tokenizer writes them.

    Tokens that only the model has, in a padded vocabulary, have no text.
    """
    kind: Any = type(tokenizer)
    settings = {"skip_special_tokens": False} if _may_keep_special_tokens(kind) else {}
    try:
        return tokenizer.decode(list(tokens), **settings)
    except (IndexError, KeyError, OverflowError, ValueError):
        return tokenizer.decode([token for token in tokens if _is_known(tokenizer, token)], **settings)


@functools.cache  # a stop text is looked for at every token
def _may_keep_special_tokens(kind: Any) -> bool:
    return "skip_special_tokens" in inspect.signature(kind.decode).parameters


def _is_known(tokenizer: Any, token: int) -> bool:
    try:
        tokenizer.decode([token])
    except (IndexError, KeyError, OverflowError, ValueError):
        return False
    return True
