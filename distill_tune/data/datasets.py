"""Dataset components for a user's own rows: chats, instructions, plain text.

They take fewer arguments than torchtune's, which work as well. Each gives tokens and labels a row; reading, checking
and caching are done by :mod:`distill_tune.data.prepare`, packing by :mod:`distill_tune.data.plan`.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_tune.data import docstring_rows
from distill_tune.data.asked import QUESTION, TURNS, Asked, asked_in, question_in
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, tokenise
from distill_tune.data.prompts import Prompt
from distill_tune.data.row_fields import (
    column_names,
    column_of,
    field_in,
    first_column,
    history_in,
    optional_text,
    require_learned,
    text_field,
    text_in,
    tools_in,
    unread_in,
)
from distill_tune.data.sources import LocalRows, NoAnswer, Row, RowError, load_dataset, without_filling
from distill_tune.data.turns import MarkedTurn, is_empty, is_turns, learning_answers, turns_of
from distill_tune.errors import UserError

__all__ = ["IGNORE_INDEX", "TokenisedDataset", "chat", "docstrings", "instruct", "read_behind", "text"]

_TRAIN_ON = ("all", "last", "marked")
# Names of a column, the likeliest first.
ANSWER = ("output", "response", "completion", "answer")
_FINISH_REASON = "finish_reason"
_CUT = ("length", "repetition", "content_filter")  # as OpenAI's answers and the recipe generate say it


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
        asked: a row, which need have no answer, as what it asks; None where that cannot be told.
    """

    rows: Any
    tokenise: Callable[[Row], dict[str, Any]]
    max_seq_len: int | None = None
    packed: bool = False
    conversation: Callable[[Row], Conversation] | None = None
    unread: Callable[[Row], tuple[str, ...]] = lambda row: ()
    asked: Callable[[Row], Asked] | None = None

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
    tokenizer: Any,
    rows: Any,
    conversation: Callable[[Row], Conversation],
    asked: Callable[[Row], Asked],
    max_seq_len: int | None,
    packed: bool,
) -> TokenisedDataset:
    def tokenised(row: Row) -> dict[str, Any]:
        return tokenise(tokenizer, conversation(row))._asdict()

    def unread(row: Row) -> tuple[str, ...]:
        return unread_in(row, conversation)

    return TokenisedDataset(rows, tokenised, max_seq_len, packed, conversation, unread, asked)


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
    columns = column_names(column_map, ("prompt", "input", "response", "system", "history", "tools"))
    _require_train_on(train_on, _TRAIN_ON[:2])

    def conversation_of(row: Row) -> Conversation:
        require_learned(row)
        name = column_of(row, columns.get("prompt"), QUESTION, "prompt")
        question = question_in(row, name, columns)
        answer = _answer_in(row, columns.get("response"))
        system = optional_text(row, columns.get("system", "system")) or system_prompt
        turns = [_said("system", system)] if system else []
        for before, reply in history_in(row, columns.get("history", "history")):
            turns += [_said("user", before), _said("assistant", reply)]
        turns += [_said("user", question), _said("assistant", answer)]
        tools = tools_in(row, columns.get("tools"))
        return _as_it_ended(learning_answers(turns, train_on, train_on_input, tools=tools), row)

    rows = _load(source, split, load_dataset_kwargs)
    asked = functools.partial(asked_in, columns=columns, system_prompt=system_prompt)
    return _of_conversations(tokenizer, rows, conversation_of, asked, max_seq_len, packed)


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
    not learned. Both are counted.

    A turn that says ``weight: 0``, ``train: false`` or ``loss: false`` of itself is not learned. Of a row with
    ``finish_reason: length`` the last answer is learned without an end.

    Args:
        column_map: other names for ``messages``, ``system`` or ``tools``: ``{messages: other_name}``.
        train_on: ``all`` assistant turns, the ``last`` alone, or those that are ``marked`` by ``weight: 1``,
            ``train: true`` or ``loss: true``, whichever their role.

    The other arguments are those of :func:`instruct`.
    """
    columns = column_names(column_map, ("messages", "system", "tools"))
    _require_train_on(train_on, _TRAIN_ON)

    def conversation_of(row: Row) -> Conversation:
        require_learned(row)
        turns, num_given = _turns(row, columns.get("messages"))
        system = optional_text(row, columns.get("system", "system"))
        own = turns[0].turn["content"] if turns[0].turn["role"] == "system" else None
        if system and own is not None and own != system:
            raise RowError("has a system turn and another text in its column system; keep one of them")
        if (system or system_prompt) and own is None:
            turns, num_given = [_said("system", system or system_prompt or ""), *turns], num_given + 1
        ends_empty = turns[-1].turn["role"] == "assistant" and is_empty(turns[-1].turn)
        mark = turns.pop().mark if ends_empty else None
        num_empty = int(ends_empty and (bool(mark) if train_on == "marked" else mark is not False))
        if not any(turn["role"] == "assistant" for turn, _ in turns[num_given:]):
            raise NoAnswer("no answer: there is no assistant turn with text")
        tools = tools_in(row, columns.get("tools"))
        return _as_it_ended(learning_answers(turns, train_on, train_on_input, num_given, tools, num_empty), row)

    rows = _load(source, split, load_dataset_kwargs)
    asked = functools.partial(asked_in, columns=columns, system_prompt=system_prompt)
    return _of_conversations(tokenizer, rows, conversation_of, asked, max_seq_len, packed)


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
    column = column_names(column_map, ("text",)).get("text", "text")

    def text_of(row: Row) -> str:
        content = text_in(row, column)
        if not content.strip():
            raise RowError("the text is empty")
        return content

    def tokenised(row: Row) -> dict[str, Any]:
        tokens = tokenizer.encode(text_of(row), add_bos=True, add_eos=True)
        return {"tokens": tokens, "labels": tokens}

    rows = _load(source, split, load_dataset_kwargs)
    asked = functools.partial(asked_in, columns={"text": column})
    return TokenisedDataset(
        rows, tokenised, max_seq_len, packed, unread=lambda row: unread_in(row, text_of), asked=asked
    )


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
    rows = _Docstrings(num_rows, held_out, min_characters)

    def conversation_of(row: Row) -> Conversation:
        return learning_answers([_said("user", row["instruction"]), _said("assistant", row["output"])])

    asked = functools.partial(asked_in, columns={})
    made = _of_conversations(tokenizer, rows, conversation_of, asked, max_seq_len, packed)
    return dataclasses.replace(made, unread=lambda row: ())


def dataset_for(row: Row) -> str:
    """Which of these reads a row like this one: ``chat``, ``instruct`` or ``text``."""
    has = {name for name, value in row.items() if value is not None}
    if has.intersection(TURNS) or any(is_turns(row.get(part)) for part in ("prompt", "completion")):
        return "chat"
    asks_and_answers = has.intersection(QUESTION) and has.intersection(ANSWER)
    return "text" if "text" in has and not asks_and_answers else "instruct"


@dataclasses.dataclass(frozen=True)
class _Docstrings(Sequence[Row]):
    """Rows that are read when the first one is taken: where their tokens are kept, none is."""

    num_rows: int | None
    held_out: bool
    min_characters: int

    @functools.cached_property
    def fingerprint(self) -> str:
        asked = (self.num_rows, self.held_out, self.min_characters, docstring_rows.sources_fingerprint())
        return hashlib.sha256(repr(asked).encode()).hexdigest()

    @functools.cached_property
    def _rows(self) -> list[dict[str, str]]:
        return docstring_rows.collect(self.num_rows, held_out=self.held_out, min_characters=self.min_characters)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self._rows[index]


def _load(source: str, split: str, options: Mapping[str, Any]) -> Any:
    rows = load_dataset(source, split=split, **options)
    return rows if isinstance(rows, LocalRows) else without_filling(rows)


def _as_it_ended(conversation: Conversation, row: Row) -> Conversation:
    """With it noted where the row says that its answer was cut, so that its end is not learned."""
    is_cut = row.get(_FINISH_REASON) in _CUT and conversation.turns[-1]["role"] == "assistant"
    return dataclasses.replace(conversation, is_cut=is_cut)


def _said(role: str, content: str) -> MarkedTurn:
    return MarkedTurn({"role": role, "content": content}, None)


def _turns(row: Row, column: str | None) -> tuple[list[MarkedTurn], int]:
    """A row's turns, and how many of them are given before what is learned."""
    name = column or first_column(row, TURNS)
    if name is None and first_column(row, ("prompt",)) and first_column(row, ("completion",)):
        prompt, completion = (
            turns_of(row[part], part) if is_turns(row[part]) else [_said(role, text_in(row, part))]
            for part, role in (("prompt", "user"), ("completion", "assistant"))
        )
        return [*prompt, *completion], len(prompt)
    name = name or "messages"
    return turns_of(field_in(row, name), name), 0


def _answer_in(row: Row, column: str | None) -> str:
    name = column or first_column(row, ANSWER)
    try:
        answer = text_field(row, column, ANSWER, "response")
    except RowError as error:
        if name is None or dict.get(row, name) is None:
            raise NoAnswer(str(error)) from error
        raise
    if not answer.strip():
        raise NoAnswer("the answer is empty")
    return answer


def _require_train_on(train_on: str, known: Sequence[str]) -> None:
    if train_on not in known:
        also = "; distill_tune.data.chat knows marked, too" if train_on == "marked" else ""
        raise UserError(f"dataset.train_on={train_on}: must be one of {', '.join(known)}{also}")
