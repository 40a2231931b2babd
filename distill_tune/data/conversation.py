"""A row as the turns of a conversation, in the form that chat templates read."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.sources import RowError

from torchtune.data import Message

IGNORE_INDEX = -100

Turn = Mapping[str, Any]
_WITHOUT_TEMPLATE = ("reasoning_content", "tool_calls")
OTHER_TEXT = "☃"  # that hardly a turn begins or ends with


@dataclasses.dataclass(frozen=True)
class Conversation:
    """
    Attributes:
        turns: each with a ``role`` (system, user, assistant, tool) and a ``content``, a text, and what else the
            templates of transformers read: ``reasoning_content``, ``tool_calls``, ``name``, ``tool_call_id``.
        learned: of each turn, whether what the template writes for it is learned.
        tools: the functions that may be called, as JSON schemas; None without any.
        num_empty: answers that would be learned, had they a text; one at the end is not among ``turns``.
        is_cut: the last answer was cut when it was made: its end is not learned.
    """

    turns: tuple[Turn, ...]
    learned: tuple[bool, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None
    num_empty: int = 0
    is_cut: bool = False

    def with_turns(self, turns: Sequence[Turn], learned: Sequence[bool]) -> "Conversation":
        return dataclasses.replace(self, turns=tuple(turns), learned=tuple(learned))


class Tokens(NamedTuple):
    """A row's tokens.

    Attributes:
        tokens: ``[s]``, int32.
        labels: the same, -100 where nothing is to be learned, ``[s]``, int32.
        is_text: which are the text of a turn, and not what the template writes around it, ``[s]``, bool; None where the
            tokenizer does not tell.
        dropped: parts of learned turns that the template does not write, by name: ``reasoning_content``.
        num_empty: answers that are not learned since they are empty.
        is_cut: they stop where the last answer was cut when it was made.
    """

    tokens: numpy.ndarray
    labels: numpy.ndarray
    is_text: numpy.ndarray | None = None
    dropped: tuple[str, ...] = ()
    num_empty: int = 0
    is_cut: bool = False


def tokenise(tokenizer: Any, conversation: Conversation) -> Tokens:
    """
    Args:
        tokenizer: :func:`~distill_tune.data.tokenizer.hf_tokenizer`'s, or one of torchtune's.

    Raises:
        RowError: the tokenizer cannot write the conversation, or not all of it.
    """
    tokens = _tokenised(tokenizer, conversation)
    return _up_to_its_cut(tokens, tokenizer, conversation) if conversation.is_cut else tokens


def prompt_tokens(
    tokenizer: Any, turns: Sequence[Turn], tools: tuple[Mapping[str, Any], ...] | None = None
) -> list[int]:
    """The tokens after which an answer to the turns begins.

    Raises:
        RowError: the tokenizer cannot write them.
    """
    if hasattr(tokenizer, "prompt"):
        return tokenizer.prompt(turns, tools)
    answer, learned = {"role": "assistant", "content": OTHER_TEXT}, (*[False] * len(turns), True)
    found = _tokenised(tokenizer, Conversation((*turns, answer), learned, tools))
    return found.tokens[: int((found.labels != IGNORE_INDEX).argmax())].tolist()


def _up_to_its_cut(tokens: Tokens, tokenizer: Any, conversation: Conversation) -> Tokens:
    """The tokens that stay the same where the last answer goes on."""
    *before, last = conversation.turns
    name = "content" if last.get("content") or not last.get("reasoning_content") else "reasoning_content"
    turns = [*before, {**last, name: f"{last[name]}{OTHER_TEXT}"}]
    longer = _tokenised(tokenizer, conversation.with_turns(turns, conversation.learned)).tokens
    return first_tokens(tokens, num_same(longer, tokens.tokens))._replace(is_cut=True)


def first_tokens(row: Tokens, count: int | None) -> Tokens:
    """A row's first so many tokens; all of them without a number."""
    is_text = None if row.is_text is None else row.is_text[:count]
    return row._replace(tokens=row.tokens[:count], labels=row.labels[:count], is_text=is_text)


@contextlib.contextmanager
def without_bounds(tokenizers: Sequence[Any]) -> Iterator[None]:
    """With tokenizers that cut nothing; torchtune's would put an eos where a cut answer goes on."""
    bounds = [getattr(tokenizer, "max_seq_len", None) for tokenizer in tokenizers]
    for tokenizer in tokenizers:
        tokenizer.max_seq_len = None
    try:
        yield
    finally:
        for tokenizer, bound in zip(tokenizers, bounds, strict=True):
            tokenizer.max_seq_len = bound


def num_same(one: numpy.ndarray, other: numpy.ndarray) -> int:
    """How many values are the same from the beginning on."""
    shorter = min(len(one), len(other))
    differ = (one[:shorter] != other[:shorter]).nonzero()[0]
    return int(differ[0]) if len(differ) else shorter


def _tokenised(tokenizer: Any, conversation: Conversation) -> Tokens:
    if hasattr(tokenizer, "tokenise_conversation"):
        return tokenizer.tokenise_conversation(conversation)._replace(num_empty=conversation.num_empty)
    tokens, mask = tokenizer.tokenize_messages(_messages(conversation))
    array = numpy.asarray(tokens, numpy.int32)
    return Tokens(array, numpy.where(mask, IGNORE_INDEX, array), num_empty=conversation.num_empty)


def _messages(conversation: Conversation) -> list[Message]:
    """For a tokenizer of torchtune's, which knows texts alone."""
    if conversation.tools:
        raise RowError("has tools, which this tokenizer has no place for; take distill_tune.data.hf_tokenizer")
    for number, turn in enumerate(conversation.turns, 1):
        if found := [name for name in _WITHOUT_TEMPLATE if turn.get(name)]:
            raise RowError(
                f"turn {number} has {' and '.join(found)}, which this tokenizer has no place for; take "
                "distill_tune.data.hf_tokenizer"
            )
        if turn["role"] not in ("system", "user", "assistant"):
            raise RowError(
                f"turn {number} has the role {turn['role']}, which this tokenizer has no place for; take "
                "distill_tune.data.hf_tokenizer"
            )
    return [
        Message(turn["role"], turn["content"], masked=not is_learned)
        for turn, is_learned in zip(conversation.turns, conversation.learned, strict=True)
    ]
