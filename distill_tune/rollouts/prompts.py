"""What of a row is its prompt, and the row with another answer behind it."""

from collections.abc import Sequence

import numpy
import torch

from distill_tune.data.batch import Row
from distill_tune.data.conversation import IGNORE_INDEX
from distill_tune.data.tokenised_rows import TokenisedRows


def prompt_lengths(rows: TokenisedRows) -> numpy.ndarray:
    """Tokens before the last learned span of each row, ``[rows]``; all of a row where nothing is learned."""
    learned = (rows.labels != IGNORE_INDEX).numpy()
    starts, ends = rows.offsets[:-1].numpy(), rows.offsets[1:].numpy()
    follows = numpy.zeros_like(learned)  # a learned token in the same row
    follows[1:] = learned[:-1]
    follows[starts] = False
    begins = (learned & ~follows).nonzero()[0]
    last = numpy.searchsorted(begins, ends) - 1
    found = begins[last] if len(begins) else starts
    is_own = (last >= 0) & (found >= starts)
    return numpy.where(is_own, found, ends) - starts


def prompt_of(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The tokens of one row before its last learned span."""
    learned = labels != IGNORE_INDEX
    begins = learned.clone()
    begins[1:] &= ~learned[:-1]
    places = begins.nonzero()[:, 0]
    return tokens[: int(places[-1])] if len(places) else tokens


def answered(row: Row, answer: Sequence[int]) -> Row:
    """The row with an answer of its own behind the student's prompt, and behind the teacher's, where it has one.

    The answer is learned as it is: an end that it has not is not taught. ``others`` stay as they are.
    """
    tokens, labels = behind(prompt_of(row.tokens, row.labels), answer)
    of_teacher: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    if row.teacher_tokens is not None and row.teacher_labels is not None:
        of_teacher = behind(prompt_of(row.teacher_tokens, row.teacher_labels), answer)
    return Row(tokens, labels, *of_teacher, row.teacher_id, row.place, others=row.others)


def behind(prompt: torch.Tensor, answer: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of a prompt and an answer, which alone is learned."""
    written = torch.tensor(answer, dtype=prompt.dtype)
    return torch.cat([prompt, written]), torch.cat([torch.full_like(prompt, IGNORE_INDEX), written])
