"""Dataset components for a user's own rows: chats, instructions, plain text.

They take fewer arguments than torchtune's, which work as well. Each gives tokens and labels a row; reading, checking
and caching are done by :mod:`distill_tune.data.prepare`, packing by :mod:`distill_tune.data.plan`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data import docstring_rows
from distill_tune.data.prompts import Prompt
from distill_tune.data.sources import Row, RowError, load_dataset

from torchtune.data import Message

IGNORE_INDEX = -100

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


@dataclasses.dataclass(frozen=True)
class TokenisedDataset:
    """Rows and how to tokenise one of them.

    Attributes:
        rows: a list of mappings, or what :func:`~distill_tune.data.sources.load_dataset` gives.
        tokenise: a row to ``{"tokens": [...], "labels": [...]}``, labels -100 where nothing is to be learned.
        max_seq_len: rows are cut there; None for the tokenizer's own bound.
        packed: rows share a sequence up to ``max_seq_len``.
        messages: a row as the turns that are tokenised; None for plain text.
    """

    rows: Any
    tokenise: Callable[[Row], dict[str, numpy.ndarray]]
    max_seq_len: int | None = None
    packed: bool = False
    messages: Callable[[Row], list[Message]] | None = None

    @property
    def _data(self) -> Any:
        return self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, numpy.ndarray]:
        return self.tokenise(self.rows[index])


def read_behind(prompt: Prompt, dataset: Any, tokenizer: Any, index: int) -> dict[str, Any]:
    """A dataset's row, tokenised behind ``prompt``; of datasets of ours with turns.

    Raises:
        RowError: the row has not what the prompt names.
    """
    if prompt.is_plain:
        return dataset[index]
    row = dataset.rows[index]
    return _tokenise_messages(tokenizer, prompt.applied(dataset.messages(row), row))


def _of_messages(
    tokenizer: Any, rows: Any, messages: Callable[[Row], list[Message]], max_seq_len: int | None, packed: bool
) -> TokenisedDataset:
    def tokenise(row: Row) -> dict[str, numpy.ndarray]:
        return _tokenise_messages(tokenizer, messages(row))

    return TokenisedDataset(rows, tokenise, max_seq_len, packed, messages)


def instruct(
    tokenizer: Any,
    source: str,
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    system_prompt: str | None = None,
    max_seq_len: int | None = None,
    packed: bool = False,
    split: str = "train",
    **load_dataset_kwargs: Any,
) -> TokenisedDataset:
    """Rows with a question and an answer.

    The fields are found by name: ``instruction`` (with an optional ``input``) or ``prompt`` or ``question``, and
    ``output`` or ``response`` or ``completion`` or ``answer``. The tokenizer's chat template does the rest.

    Args:
        tokenizer: given by the recipe.
        source: a local file (JSON, JSONL, CSV, Parquet), a folder of them, or a hub name.
        column_map: other names for ``prompt``, ``input``, ``response`` or ``system``, e.g. ``{prompt: 问题}``.
        train_on_input: whether the prompt is learned too.
        system_prompt: put before every row that has none of its own (field ``system``).
        max_seq_len: rows are cut there; default the tokenizer's.
        packed: rows share a sequence up to ``max_seq_len``.
        split: ``train`` or a part of it, ``train[:95%]``.
        **load_dataset_kwargs: ``field``, ``delimiter``, ``encoding``; for the hub, all of ``datasets.load_dataset``.
    """
    columns = column_map or {}

    def messages_of(row: Row) -> list[Message]:
        prompt = _text_field(row, columns.get("prompt"), ("instruction", "prompt", "question"), "prompt")
        more = _optional_text(row, columns.get("input", "input"))
        answer = _text_field(row, columns.get("response"), ("output", "response", "completion", "answer"), "response")
        if not answer.strip():
            raise RowError("the answer is empty")
        system = _optional_text(row, columns.get("system", "system")) or system_prompt
        messages = [Message("system", system, masked=not train_on_input)] if system else []
        messages.append(Message("user", f"{prompt}\n\n{more}" if more else prompt, masked=not train_on_input))
        messages.append(Message("assistant", answer))
        return messages

    rows = load_dataset(source, split=split, **load_dataset_kwargs)
    return _of_messages(tokenizer, rows, messages_of, max_seq_len, packed)


def chat(
    tokenizer: Any,
    source: str,
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    system_prompt: str | None = None,
    max_seq_len: int | None = None,
    packed: bool = False,
    split: str = "train",
    **load_dataset_kwargs: Any,
) -> TokenisedDataset:
    """Rows with a conversation, of one turn or many; every assistant turn is learned.

    Understood are ``messages`` (a list of ``role`` and ``content``) and ShareGPT's ``conversations`` (a list of
    ``from`` and ``value``), with system turns. An empty last assistant turn is left out: such a row has only a prompt.

    Args:
        column_map: ``{messages: other_name}``.

    The other arguments are those of :func:`instruct`.
    """
    column = (column_map or {}).get("messages")

    def messages_of(row: Row) -> list[Message]:
        name = column or next((name for name in ("messages", "conversations") if name in row), "messages")
        turns = _parsed(_field(row, name))
        if not isinstance(turns, list) or not turns:
            raise RowError(f"{name} must be a list of turns, found {_kind(turns)}")
        messages = [_message(turn, index, train_on_input) for index, turn in enumerate(turns)]
        if system_prompt and messages[0].role != "system":
            messages.insert(0, Message("system", system_prompt, masked=not train_on_input))
        if messages[-1].role == "assistant" and not messages[-1].text_content.strip():
            messages.pop()
        if not any(message.role == "assistant" for message in messages):
            raise RowError("no answer: there is no assistant turn with text")
        return messages

    rows = load_dataset(source, split=split, **load_dataset_kwargs)
    return _of_messages(tokenizer, rows, messages_of, max_seq_len, packed)


def text(
    tokenizer: Any,
    source: str,
    column_map: dict[str, str] | None = None,
    max_seq_len: int | None = None,
    packed: bool = False,
    split: str = "train",
    **load_dataset_kwargs: Any,
) -> TokenisedDataset:
    """Rows of plain text (field ``text``), every token learned, as in pretraining.

    Args:
        column_map: ``{text: other_name}``.

    The other arguments are those of :func:`instruct`.
    """
    column = (column_map or {}).get("text", "text")

    def tokenise(row: Row) -> dict[str, numpy.ndarray]:
        content = _text_field(row, column, (), "text")
        if not content.strip():
            raise RowError("the text is empty")
        tokens = tokenizer.encode(content, add_bos=True, add_eos=True)
        return {"tokens": tokens, "labels": tokens}

    rows = load_dataset(source, split=split, **load_dataset_kwargs)
    return TokenisedDataset(rows, tokenise, max_seq_len, packed)


def docstrings(
    tokenizer: Any,
    num_rows: int | None = None,
    held_out: bool = False,
    min_characters: int = 0,
    max_seq_len: int | None = None,
    packed: bool = False,
) -> TokenisedDataset:
    """Questions about functions and classes of installed Python code, answered by their docstrings.

    Real text that needs no download: what the demo learns from. See :mod:`distill_tune.data.docstring_rows`.

    Args:
        num_rows: how many; default all.
        held_out: which side of the split by module.
        min_characters: leave out shorter answers.
    """
    rows = _Docstrings(docstring_rows.collect(num_rows, held_out=held_out, min_characters=min_characters))

    def messages_of(row: Row) -> list[Message]:
        return [Message("user", row["instruction"], masked=True), Message("assistant", row["output"])]

    return _of_messages(tokenizer, rows, messages_of, max_seq_len, packed)


class _Docstrings(list):
    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


def _tokenise_messages(tokenizer: Any, messages: list[Message]) -> dict[str, numpy.ndarray]:
    tokens, mask = tokenizer.tokenize_messages(messages)
    array = numpy.asarray(tokens, numpy.int32)
    return {"tokens": array, "labels": numpy.where(mask, IGNORE_INDEX, array)}


def _message(turn: Any, index: int, train_on_input: bool) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"turn {index + 1} must have a role and a content, found {_kind(turn)}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(f"turn {index + 1} has the role {role!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"turn {index + 1} has no text, found {_kind(content)}")
    role = _ROLES[role]
    return Message(role, content, masked=role != "assistant" and not train_on_input)


def _text_field(row: Row, column: str | None, candidates: Sequence[str], meaning: str) -> str:
    name = column or next((name for name in candidates if name in row), None)
    if name is None:
        raise RowError(
            f"no field {' or '.join(candidates)}; it has {', '.join(map(str, row))}: "
            f"name it with column_map: {{{meaning}: ...}}"
        )
    value = _field(row, name)
    if not isinstance(value, str):
        raise RowError(f"field {name} must be text, found {_kind(value)}")
    return value


def _optional_text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"field {name} must be text, found {_kind(value)}")
    return value or ""


def _field(row: Row, name: str) -> Any:
    if name not in row:
        raise RowError(f"no field {name}; it has {', '.join(map(str, row))}")
    return row[name]


def _parsed(value: Any) -> Any:
    """A conversation in a CSV cell is JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
