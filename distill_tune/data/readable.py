"""Tokens as text that a person can read, with what is learned told apart."""

import inspect
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from distill_tune.data.augmentation import special_tokens
from distill_tune.data.conversation import IGNORE_INDEX

_TURNED = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # the direction of what follows


class Piece(NamedTuple):
    text: str
    learned: bool


def pieces(tokenizer: Any, tokens: Sequence[int], labels: Sequence[int]) -> list[Piece]:
    """A row's text, cut where it begins or ceases to be learned; special tokens stand there with their names.

    Tokens are decoded together, not one by one: of a character of several tokens none is the character.
    """
    found: list[Piece] = []

    def add(text: str, learned: bool) -> None:
        if found and found[-1].learned == learned:
            text = found.pop().text + text
        if text:
            found.append(Piece(text, learned))

    special, learned = special_tokens(tokenizer), [label != IGNORE_INDEX for label in labels]
    start = 0
    while start < len(tokens):
        if tokens[start] in special:
            add(name_of(tokenizer, tokens[start]), learned[start])
            start += 1
            continue
        stop = next((at for at in range(start, len(tokens)) if tokens[at] in special), len(tokens))
        whole, done = _decoded(tokenizer, tokens[start:stop]), 0
        for at in range(start + 1, stop):
            if learned[at] != learned[at - 1]:
                upto = _num_same(whole, _decoded(tokenizer, tokens[start:at]))
                add(whole[done:upto], learned[at - 1])
                done = max(done, upto)
        add(whole[done:], learned[stop - 1])
        start = stop
    return found


def name_of(tokenizer: Any, token: int) -> str:
    """A token as text; of a special one without a text what it is for: ``<eos>``."""
    named = {number: name for name, number in dict(getattr(tokenizer, "special_tokens", None) or {}).items()}
    if text := named.get(token) or _decoded(tokenizer, [token]):
        return text
    kinds = [kind for kind in ("bos", "eos", "pad") if getattr(tokenizer, f"{kind}_id", None) == token]
    return f"<{kinds[0] if kinds else token}>"


def visible(text: str) -> str:
    """A text that a terminal shows as it is and does not obey: line ends marked, control characters written out."""
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t" or not (unicodedata.category(character) in ("Cc", "Zl", "Zp") or character in _TURNED):
        return character
    return character.encode("unicode_escape").decode()


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    options = {"skip_special_tokens": False, "truncate_at_eos": False}
    taken = inspect.signature(tokenizer.decode).parameters
    return tokenizer.decode(list(tokens), **{name: value for name, value in options.items() if name in taken})


def _num_same(one: str, other: str) -> int:
    """How many first characters are the same."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
