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

from distill_tune.data import docstring_rows
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, Turn, tokenise
from distill_tune.data.prompts import Prompt
from distill_tune.data.sources import Row, RowError, load_dataset

__all__ = ["IGNORE_INDEX", "TokenisedDataset", "chat", "docstrings", "instruct", "read_behind", "text"]

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
        conversation: a row as the turns that are tokenised; None for plain text.
    """

    rows: Any
    tokenise: Callable[[Row], dict[str, Any]]
    max_seq_len: int | None = None
    packed: bool = False
    conversation: Callable[[Row], Conversation] | None = None

    @property
    def _data(self) -> Any:
        return self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.tokenise(self.rows[index])


def read_behind(prompt: Prompt, dataset: Any, tokenizer: Any, index: int) -> dict[str, Any]:
    """A dataset's row, tokenised behind ``prompt``; of datasets of ours with turns.

    Raises:
        RowError: the row has not what the prompt names.
    """
    if prompt.is_plain:
        return dataset[index]
    row = dataset.rows[index]
    return tokenise(tokenizer, prompt.applied(dataset.conversation(row), row))._asdict()


def _of_conversations(
    tokenizer: Any, rows: Any, conversation: Callable[[Row], Conversation], max_seq_len: int | None, packed: bool
) -> TokenisedDataset:
    def tokenised(row: Row) -> dict[str, Any]:
        return tokenise(tokenizer, conversation(row))._asdict()

    return TokenisedDataset(rows, tokenised, max_seq_len, packed, conversation)


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

    def conversation_of(row: Row) -> Conversation:
        prompt = _text_field(row, columns.get("prompt"), ("instruction", "prompt", "question"), "prompt")
        more = _optional_text(row, columns.get("input", "input"))
        answer = _text_field(row, columns.get("response"), ("output", "response", "completion", "answer"), "response")
        if not answer.strip():
            raise RowError("the answer is empty")
        system = _optional_text(row, columns.get("system", "system")) or system_prompt
        turns = [{"role": "system", "content": system}] if system else []
        turns.append({"role": "user", "content": f"{prompt}\n\n{more}" if more else prompt})
        turns.append({"role": "assistant", "content": answer})
        return _learning_answers(turns, train_on_input)

    rows = load_dataset(source, split=split, **load_dataset_kwargs)
    return _of_conversations(tokenizer, rows, conversation_of, max_seq_len, packed)


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

    def conversation_of(row: Row) -> Conversation:
        name = column or next((name for name in ("messages", "conversations") if name in row), "messages")
        found = _parsed(_field(row, name))
        if not isinstance(found, list) or not found:
            raise RowError(f"{name} must be a list of turns, found {_kind(found)}")
        turns = [_turn(turn, index) for index, turn in enumerate(found)]
        if system_prompt and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": system_prompt})
        if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
            turns.pop()
        if not any(turn["role"] == "assistant" for turn in turns):
            raise RowError("no answer: there is no assistant turn with text")
        return _learning_answers(turns, train_on_input)

    rows = load_dataset(source, split=split, **load_dataset_kwargs)
    return _of_conversations(tokenizer, rows, conversation_of, max_seq_len, packed)


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

    def conversation_of(row: Row) -> Conversation:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        return _learning_answers(turns)

    return _of_conversations(tokenizer, rows, conversation_of, max_seq_len, packed)


class _Docstrings(list):
    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


def _learning_answers(turns: Sequence[Turn], train_on_input: bool = False) -> Conversation:
    learned = [train_on_input or turn["role"] == "assistant" for turn in turns]
    return Conversation(tuple(turns), tuple(learned))


def _turn(turn: Any, index: int) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError(f"turn {index + 1} must have a role and a content, found {_kind(turn)}")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(f"turn {index + 1} has the role {role!r}; known are {', '.join(_ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"turn {index + 1} has no text, found {_kind(content)}")
    return {"role": _ROLES[role], "content": content}


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
