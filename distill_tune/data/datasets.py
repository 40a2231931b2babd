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
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, tokenise
from distill_tune.data.prompts import Prompt
from distill_tune.data.sources import LocalRows, Row, RowError, load_dataset, without_filling
from distill_tune.data.turns import KNOWN_KEYS, MarkedTurn, is_empty, kind, mark_of, parsed, tools_of, turns_of
from distill_tune.errors import UserError

__all__ = ["IGNORE_INDEX", "TokenisedDataset", "chat", "docstrings", "instruct", "read_behind", "text"]

_TRAIN_ON = ("all", "last", "marked")
_TOOLS = ("tools", "functions")
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclasses.dataclass(frozen=True)
class TokenisedDataset:
    """Rows and how to tokenise one of them.

    Attributes:
        rows: a list of mappings, or what :func:`~distill_tune.data.sources.load_dataset` gives.
        tokenise: a row to ``{"tokens": [...], "labels": [...]}``, labels -100 where nothing is to be learned.
        max_seq_len: rows are cut there; None for the tokenizer's own bound.
        packed: rows share a sequence up to ``max_seq_len``.
        conversation: a row as the turns that are tokenised; None for plain text.
        unread: a row to the names of what it has and nobody reads: columns, and keys of turns as ``messages[].id``.
    """

    rows: Any
    tokenise: Callable[[Row], dict[str, Any]]
    max_seq_len: int | None = None
    packed: bool = False
    conversation: Callable[[Row], Conversation] | None = None
    unread: Callable[[Row], tuple[str, ...]] = lambda row: ()

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

    def unread(row: Row) -> tuple[str, ...]:
        return _unread(row, conversation)

    return TokenisedDataset(rows, tokenised, max_seq_len, packed, conversation, unread)


def instruct(
    tokenizer: Any,
    source: str,
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    system_prompt: str | None = None,
    train_on: str = "all",
    max_seq_len: int | None = None,
    packed: bool = False,
    split: str = "train",
    **load_dataset_kwargs: Any,
) -> TokenisedDataset:
    """Rows with a question and an answer.

    The fields are found by name: ``instruction`` (with an optional ``input`` or ``context``) or ``prompt`` or
    ``question``, and ``output`` or ``response`` or ``completion`` or ``answer``; besides, ``system``, ``tools``, and
    ``history``, a list of questions and answers that went before. The tokenizer's chat template does the rest.

    Args:
        tokenizer: given by the recipe.
        source: a local file (JSON, JSONL, CSV, Parquet, Arrow; packed or not), a folder of them, or a hub name.
        column_map: other names for ``prompt``, ``input``, ``response``, ``system``, ``history`` or ``tools``, e.g.
            ``{prompt: 问题}``.
        train_on_input: whether the prompt is learned too.
        system_prompt: put before every row that has none of its own (field ``system``).
        train_on: ``all`` answers, those of ``history`` included, or the ``last`` alone.
        max_seq_len: rows are cut there; default the tokenizer's.
        packed: rows share a sequence up to ``max_seq_len``.
        split: ``train``, another one of a folder's, or a part: ``train[:95%]``.
        **load_dataset_kwargs: ``data_files``, ``data_dir``, ``name``, ``field``, ``delimiter``, ``encoding``; for the
            hub, all of ``datasets.load_dataset``.

    Raises:
        UserError: no such file or split, another ``train_on``, or a ``column_map`` for what is not read.
    """
    columns = _column_map(column_map, ("prompt", "input", "response", "system", "history", "tools"))
    _require_train_on(train_on, _TRAIN_ON[:2])

    def conversation_of(row: Row) -> Conversation:
        _require_learned(row)
        prompt = _text_field(row, columns.get("prompt"), ("instruction", "prompt", "question"), "prompt")
        more = _optional_text(row, columns.get("input", "input"))
        if not more and "input" not in columns and isinstance(row.get("context"), str):  # as Dolly's rows call it
            more = row["context"]
        answer = _text_field(row, columns.get("response"), ("output", "response", "completion", "answer"), "response")
        if not answer.strip():
            raise RowError("the answer is empty")
        system = _optional_text(row, columns.get("system", "system")) or system_prompt
        turns = [_said("system", system)] if system else []
        for question, reply in _history(row, columns.get("history", "history")):
            turns += [_said("user", question), _said("assistant", reply)]
        turns += [_said("user", f"{prompt}\n\n{more}" if more else prompt), _said("assistant", answer)]
        return _conversation(turns, train_on, train_on_input, tools=_tools(row, columns.get("tools")))

    rows = _load(source, split, load_dataset_kwargs)
    return _of_conversations(tokenizer, rows, conversation_of, max_seq_len, packed)


def chat(
    tokenizer: Any,
    source: str,
    column_map: dict[str, str] | None = None,
    train_on_input: bool = False,
    system_prompt: str | None = None,
    train_on: str = "all",
    max_seq_len: int | None = None,
    packed: bool = False,
    split: str = "train",
    **load_dataset_kwargs: Any,
) -> TokenisedDataset:
    """Rows with a conversation, of one turn or many; every assistant turn is learned.

    Understood are ``messages`` (a list of ``role`` and ``content``), ShareGPT's ``conversations`` (a list of ``from``
    and ``value``), and ``prompt`` with ``completion``, each a text or a list of turns: there the completion's answers
    are learned. Besides, ``system`` and ``tools``. Turns keep what templates read: reasoning, calls of tools and their
    results. An empty last assistant turn is left out: such a row has only a prompt. An empty one before is written, and
    not learned.

    A turn that says ``weight: 0``, ``train: false`` or ``loss: false`` of itself is not learned.

    Args:
        column_map: other names for ``messages``, ``system`` or ``tools``: ``{messages: other_name}``.
        train_on: ``all`` assistant turns, the ``last`` alone, or those that are ``marked`` by ``weight: 1``,
            ``train: true`` or ``loss: true``, whichever their role.

    The other arguments are those of :func:`instruct`.
    """
    columns = _column_map(column_map, ("messages", "system", "tools"))
    _require_train_on(train_on, _TRAIN_ON)

    def conversation_of(row: Row) -> Conversation:
        _require_learned(row)
        turns, num_given = _turns(row, columns.get("messages"))
        system = _optional_text(row, columns.get("system", "system"))
        own = turns[0].turn["content"] if turns[0].turn["role"] == "system" else None
        if system and own is not None and own != system:
            raise RowError("has a system turn and another text in its column system; keep one of them")
        if (system or system_prompt) and own is None:
            turns, num_given = [_said("system", system or system_prompt or ""), *turns], num_given + 1
        if turns[-1].turn["role"] == "assistant" and is_empty(turns[-1].turn):
            turns.pop()
        if not any(turn["role"] == "assistant" for turn, _ in turns[num_given:]):
            raise RowError("no answer: there is no assistant turn with text")
        return _conversation(turns, train_on, train_on_input, num_given, _tools(row, columns.get("tools")))

    rows = _load(source, split, load_dataset_kwargs)
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
    column = _column_map(column_map, ("text",)).get("text", "text")

    def tokenise(row: Row) -> dict[str, numpy.ndarray]:
        content = _text_field(row, column, (), "text")
        if not content.strip():
            raise RowError("the text is empty")
        tokens = tokenizer.encode(content, add_bos=True, add_eos=True)
        return {"tokens": tokens, "labels": tokens}

    def unread(row: Row) -> tuple[str, ...]:
        return tuple(name for name, value in row.items() if name != column and value not in _EMPTY)

    rows = _load(source, split, load_dataset_kwargs)
    return TokenisedDataset(rows, tokenise, max_seq_len, packed, unread=unread)


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
        return _conversation([_said("user", row["instruction"]), _said("assistant", row["output"])])

    made = _of_conversations(tokenizer, rows, conversation_of, max_seq_len, packed)
    return dataclasses.replace(made, unread=lambda row: ())


class _Docstrings(list):
    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


def _load(source: str, split: str, options: Mapping[str, Any]) -> Any:
    rows = load_dataset(source, split=split, **options)
    return rows if isinstance(rows, LocalRows) else without_filling(rows)


def _said(role: str, content: str) -> MarkedTurn:
    return MarkedTurn({"role": role, "content": content}, None)


def _turns(row: Row, column: str | None) -> tuple[list[MarkedTurn], int]:
    """A row's turns, and how many of them are given before what is learned."""
    name = column or _first(row, ("messages", "conversations"))
    if name is None and _first(row, ("prompt",)) and _first(row, ("completion",)):
        prompt, completion = (
            turns_of(value, part) if isinstance(value := parsed(row[part]), list) else [_said(role, _text(row, part))]
            for part, role in (("prompt", "user"), ("completion", "assistant"))
        )
        return [*prompt, *completion], len(prompt)
    name = name or "messages"
    return turns_of(_field(row, name), name), 0


def _conversation(
    turns: Sequence[MarkedTurn],
    train_on: str = "all",
    train_on_input: bool = False,
    num_given: int = 0,
    tools: tuple[Mapping[str, Any], ...] | None = None,
) -> Conversation:
    """
    Args:
        num_given: turns at the beginning that are prompt, answers among them included.

    Raises:
        RowError: no turn is learned, or one that is no answer is marked to be.
    """
    is_answer = [turn["role"] == "assistant" and at >= num_given for at, (turn, _) in enumerate(turns)]
    last = max((at for at, answers in enumerate(is_answer) if answers), default=None)
    learned = []
    for at, (turn, mark) in enumerate(turns):
        if train_on == "marked":
            learned.append(bool(mark))
        elif not is_answer[at]:
            if mark and turn["role"] != "assistant" and not train_on_input:
                raise RowError(
                    f"turn {at + 1} ({turn['role']}) is marked as one to be learned; "
                    "train_on: marked learns what is marked, train_on_input: true all prompts"
                )
            learned.append(train_on_input and mark is not False)
        else:
            chosen = train_on == "all" or at == last
            learned.append(chosen and mark is not False and (bool(mark) or not is_empty(turn)))
    if not any(learned):
        reason = "no turn is marked as one to be learned" if train_on == "marked" else "none of its answers is learned"
        raise RowError(f"no answer: {reason}; leave the row out (on_bad_row=skip)")
    return Conversation(tuple(turn for turn, _ in turns), tuple(learned), tools)


def _require_learned(row: Row) -> None:
    """
    Raises:
        RowError: the row says of itself that it is not learned, or less than others.
    """
    names = [name for name in ("weight", "train", "loss") if isinstance(dict.get(row, name), int | float)]
    said = {name: row[name] for name in names if name != "loss" or isinstance(dict.get(row, name), bool)}
    if mark_of(said, "the row") is False:
        shown = ", ".join(f"{name}={value!r}" for name, value in said.items())
        raise RowError(f"says {shown} of itself; leave it out (on_bad_row=skip)")


def _tools(row: Row, column: str | None) -> tuple[Mapping[str, Any], ...] | None:
    name = column or _first(row, _TOOLS)
    return None if name is None or name not in row else tools_of(row[name], name)


def _history(row: Row, column: str) -> list[tuple[str, str]]:
    """Questions and their answers that went before."""
    found = parsed(row.get(column))
    if found in _EMPTY:
        return []
    pairs = found if isinstance(found, list) else [found]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"field {column} must be a list of [question, answer], found {kind(pair)}")
    return [(question, answer) for question, answer in pairs]


class _ReadRow(dict):
    """A row that knows which of its columns have been read."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.read[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read[name] = None
        return super().get(name, default)


def _unread(row: Row, conversation: Callable[[Row], Conversation]) -> tuple[str, ...]:
    """What a row has and nobody reads; nothing where the row cannot be used."""
    reading = _ReadRow(row)
    try:
        conversation(reading)
    except RowError:
        return ()
    columns = [name for name, value in row.items() if name not in reading.read and value not in _EMPTY]
    keys = [
        f"{name}[].{key}"
        for name in reading.read
        if isinstance(turns := parsed(row.get(name)), list)
        for turn in turns
        if isinstance(turn, Mapping) and ("role" in turn or "from" in turn)
        for key, value in turn.items()
        if key not in KNOWN_KEYS and value not in _EMPTY
    ]
    return tuple(dict.fromkeys([*columns, *keys]))


def _column_map(column_map: Mapping[str, str] | None, known: Sequence[str]) -> Mapping[str, str]:
    for name in column_map or {}:
        if name not in known:
            raise UserError(f"dataset.column_map.{name}: nothing of that name is read; known are {', '.join(known)}")
    return column_map or {}


def _require_train_on(train_on: str, known: Sequence[str]) -> None:
    if train_on not in known:
        raise UserError(f"dataset.train_on={train_on}: must be one of {', '.join(known)}")


def _first(row: Row, names: Sequence[str]) -> str | None:
    """The first of these columns in which the row has something; else the first that it has."""
    there = [name for name in names if name in row]
    return next((name for name in there if dict.get(row, name) is not None), there[0] if there else None)


def _text_field(row: Row, column: str | None, candidates: Sequence[str], meaning: str) -> str:
    name = column or _first(row, candidates)
    if name is None:
        has = ", ".join(map(str, row))
        if _first(row, ("messages", "conversations")):
            raise RowError(f"no field {' or '.join(candidates)}; it has {has}: take distill_tune.data.chat")
        raise RowError(f"no field {' or '.join(candidates)}; it has {has}: name it with column_map: {{{meaning}: ...}}")
    return _text(row, name)


def _text(row: Row, name: str) -> str:
    value = _field(row, name)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        raise RowError(f"field {name} is a list of turns; take distill_tune.data.chat")
    if not isinstance(value, str):
        raise RowError(f"field {name} must be text, found {kind(value)}")
    return value


def _optional_text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"field {name} must be text, found {kind(value)}")
    return value or ""


def _field(row: Row, name: str) -> Any:
    if name not in row:
        raise RowError(f"no field {name}; it has {', '.join(map(str, row))}")
    return row[name]
