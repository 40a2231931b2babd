"""What a row asks, whether or not it has an answer: the prompts of rows that are to be answered."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_tune.data.conversation import Conversation, Turn, prompt_tokens
from distill_tune.data.prompts import Prompt
from distill_tune.data.row_fields import first_column, history_in, optional_text, text_in, tools_in
from distill_tune.data.sources import Row, RowError
from distill_tune.data.turns import is_empty, is_turns, turns_of

# Names of columns, the likeliest first.
QUESTION = ("instruction", "prompt", "question")
TURNS = ("messages", "conversations")
TEXT = "text"


class Asked(NamedTuple):
    """
    Attributes:
        turns: up to the last that is no answer.
        tools: the functions that may be called, as JSON schemas; None without any.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] | None = None


def asked_in(row: Row, columns: Mapping[str, str], system_prompt: str | None = None) -> Asked:
    """Turns in ``messages``, ``conversations`` or ``prompt``; a question with its input and history; or a ``text``.

    An answer that the row has is left out: it is asked for anew.

    Args:
        columns: other names for ``messages``, ``prompt``, ``input``, ``history``, ``system``, ``tools`` or ``text``.
        system_prompt: of a row that has none.

    Raises:
        RowError: nothing is asked.
    """
    turns = [turn for turn in _turns(row, columns) if turn["role"] != "system" or not is_empty(turn)]
    system = optional_text(row, columns.get("system", "system")) or system_prompt
    if system and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    while turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or turns[-1]["role"] == "system":
        raise RowError("nothing is asked: there is no turn before an answer")
    if any(turn["role"] == "user" and is_empty(turn) for turn in turns):
        raise RowError("a question is empty")
    return Asked(tuple(turns), tools_in(row, columns.get("tools")))


def asked_tokens(tokenizer: Any, asked: Asked, prompt: Prompt, row: Row) -> list[int]:
    """The tokens behind which an answer to a row begins, ``prompt`` written around its user turns.

    Raises:
        RowError: template or tokenizer refuses them.
    """
    conversation = Conversation(asked.turns, (False,) * len(asked.turns), asked.tools)
    return prompt_tokens(tokenizer, prompt.applied(conversation, row).turns, asked.tools)


def _turns(row: Row, columns: Mapping[str, str]) -> list[Turn]:
    name = columns.get("messages") or first_column(row, TURNS)
    if name is None and is_turns(dict.get(row, columns.get("prompt", "prompt"))):
        name = columns.get("prompt", "prompt")
    if name is not None and name in row:
        return [turn for turn, _ in turns_of(row[name], name)]
    name = columns.get("prompt") or first_column(row, QUESTION)
    if name is None or name not in row:
        name = columns.get("text", TEXT)
        if name not in row:
            named = ", ".join((*TURNS, *QUESTION))
            raise RowError(f"nothing is asked: no field {named} or {TEXT}; it has {', '.join(map(str, row))}")
        return [{"role": "user", "content": text_in(row, name)}]
    turns = []
    for question, reply in history_in(row, columns.get("history", "history")):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return [*turns, {"role": "user", "content": question_in(row, name, columns)}]


def question_in(row: Row, name: str, columns: Mapping[str, str]) -> str:
    """A question with what it is about, where that has a field of its own."""
    question, more = text_in(row, name), optional_text(row, columns.get("input", "input"))
    if not more and "input" not in columns and isinstance(dict.get(row, "context"), str):  # as Dolly's rows call it
        more = row["context"]
    return "\n\n".join(part for part in (question, more) if part.strip())
