"""An answer of a model, and the row that it becomes for a student to learn."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from distill_tune.data.conversation import Turn
from distill_tune.data.row_fields import GENERATED
from distill_tune.generation.thinking import BEGIN, split_thinking

FINISHED = "stop"


@dataclasses.dataclass(frozen=True)
class Question:
    """
    Attributes:
        number: among the prompts, from 0.
        origin: where its row stands, for messages.
        row: as it was read.
        turns, tools: see :class:`~distill_tune.data.asked.Asked`.
        kept: columns of the row that its answers keep.
        tokens: of the prompt, as the model reads it.
        begins_thought: the prompt ends within a thought that the template has begun.
    """

    number: int
    origin: str
    row: Mapping[str, Any]
    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] | None
    kept: tuple[str, ...]
    tokens: tuple[int, ...]
    begins_thought: bool = False


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a model has answered, as it is recorded.

    Attributes:
        key: see :func:`~distill_tune.generation.record.sample_key`.
        model: its name.
        number: among the samples of its prompt, from 0.
        seed: that its random stream is from.
        finish_reason: ``stop``, or ``length`` or ``repetition`` where it was cut.
        tokens: with the end, where it has one.
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
    thought, text = split_thinking(sample.text, question.begins_thought)
    if thinking == "keep":
        text = f"{BEGIN}\n{sample.text}" if question.begins_thought else sample.text
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
