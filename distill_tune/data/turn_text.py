"""Which tokens are a turn's own text, for a tokenizer that does not tell."""

import dataclasses
from typing import Any

import numpy

from distill_tune.data.conversation import OTHER_TEXT, Conversation, num_same, tokenise


def text_of_turns(tokenizer: Any, conversation: Conversation, tokens: numpy.ndarray) -> numpy.ndarray:
    """Of the turns that are not learned: the tokens that change with the turn's text.

    Each turn's text is replaced in turn; what stays the same before and after it is not the turn's. Where that leaves
    doubt, as of a text that is written in two places, nothing counts as the turn's.

    Args:
        tokens: what the tokenizer makes of the conversation, ``[s]``.

    Returns:
        ``[s]``, bool.

    Raises:
        RowError: the tokenizer cannot write the conversation.
    """
    is_text = numpy.zeros(len(tokens), bool)
    for number, (turn, learned) in enumerate(zip(conversation.turns, conversation.learned, strict=True)):
        text = turn.get("content") or ""
        if learned or not text.strip():
            continue
        # White space at the end stays: a tokenizer may write what follows by it.
        other = OTHER_TEXT + text[len(text.rstrip()) :]
        turns = (*conversation.turns[:number], {**turn, "content": other}, *conversation.turns[number + 1 :])
        changed = tokenise(tokenizer, dataclasses.replace(conversation, turns=turns)).tokens
        start, after = num_same(tokens, changed), num_same(tokens[::-1], changed[::-1])
        if 0 <= len(changed) - start - after <= len(tokenizer.encode(other, add_bos=False, add_eos=False)):
            is_text[start : len(tokens) - after] = True
    return is_text
