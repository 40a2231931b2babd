"""An answer of a model, and the row that it becomes for a student to learn."""

import dataclasses
import datetime
import decimal
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_tune.data.conversation import Turn
from distill_tune.data.row_fields import GENERATED
from distill_tune.generation.thinking import BEGIN, split_thinking

FINISHED = "stop"


class Prompt(NamedTuple):
    """
    Attributes:
        tokens: as a model reads them.
        begins_thought: it ends within a thought that the template has begun.
    """

    tokens: tuple[int, ...]
    begins_thought: bool = False


@dataclasses.dataclass(frozen=True)
class Question:
    """
    Attributes:
        number: among the prompts, from 0.
        origin: where its row stands, for messages.
        row: as it was read.
        turns, tools: see :class:`~distill_tune.data.asked.Asked`.
        kept: columns of the row that its answers keep.
        prompts: by the name of the model that reads it.
    """

    number: int
    origin: str
    row: Mapping[str, Any]
    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] | None
    kept: tuple[str, ...]
    prompts: Mapping[str, Prompt]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a model has answered, as it is recorded.

    Attributes:
        key: see :func:`~distill_tune.generation.record.sample_key`.
        model: its name.
        number: among the samples of its prompt, from 0.
        seed: that its random stream is from.
        finish_reason: ``stop``, or ``length`` or ``repetition`` where it was cut.
        tokens: the model's own, with the end, where it has one.
        log_prob: of all of them together, by the model itself; None where it does not tell.
        text: of the tokens, without the end.
    """

    key: str
    model: str
    number: int
    seed: int
    finish_reason: str
    tokens: Sequence[int]
    log_prob: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What scores and filters are given.

    Attributes:
        row: that was asked, with all its columns.
        turns: of the prompt.
        text: of the answer; without its thought where that is left out or in ``thinking``.
        thinking: the thought, where it has a field of its own; empty otherwise.
        tokens: of all that the model has written, its end included.
        log_prob: of all of them together; None where the model does not tell.
        finish_reason: ``stop``, or ``length`` or ``repetition`` where it was cut.
        model: that has answered.
        sample: its number among those of its prompt, from 0.
    """

    row: Mapping[str, Any]
    turns: tuple[Turn, ...]
    text: str
    thinking: str
    tokens: Sequence[int]
    log_prob: float | None
    finish_reason: str
    model: str
    sample: int


def answer_of(question: Question, sample: Sample, thinking: str) -> Answer:
    """
    Args:
        thinking: ``keep`` it in the text, ``drop`` it, or give it a ``field``.
    """
    begins_thought = question.prompts[sample.model].begins_thought
    thought, text = split_thinking(sample.text, begins_thought)
    if thinking == "keep":
        text = f"{BEGIN}\n{sample.text}" if begins_thought else sample.text
    return Answer(
        question.row,
        question.turns,
        text,
        thought if thinking == "field" else "",
        sample.tokens,
        sample.log_prob,
        sample.finish_reason,
        sample.model,
        sample.number,
    )


def line_of(row: Mapping[str, Any]) -> str:
    """A row as a line of JSON; dates and decimal numbers of its columns as text.

    Raises:
        TypeError: a column that JSON does not know.
        UnicodeEncodeError: half a character.
    """
    line = json.dumps(row, ensure_ascii=False, default=_plain) + "\n"
    line.encode()
    return line


def _plain(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID):
        return str(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


def row_of(question: Question, sample: Sample, answer: Answer, score: float | None) -> dict[str, Any]:
    """A row that :func:`distill_tune.data.chat` reads: the prompt's turns and the answer, the columns of the prompt's
    row that nobody has read, how the answer ended, and how it was made.
    """
    turn = {"role": "assistant", "content": answer.text}
    if answer.thinking:
        turn["reasoning_content"] = answer.thinking
    made = {
        "model": sample.model,
        "seed": sample.seed,
        "sample": sample.number,
        "tokens": list(sample.tokens),
        "log_prob": sample.log_prob,
        "score": score,
        "key": sample.key,
    }
    return {
        "messages": [*map(dict, question.turns), turn],
        **({"tools": [dict(tool) for tool in question.tools]} if question.tools else {}),
        **{name: question.row[name] for name in question.kept},
        "finish_reason": sample.finish_reason,
        GENERATED: {name: value for name, value in made.items() if value is not None},
    }
