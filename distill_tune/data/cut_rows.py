"""What of a row student and teachers read up to their bounds: as much of the answers in each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from distill_tune.alignment.columns import AT, OFFSET
from distill_tune.alignment.rows import RowAlignment
from distill_tune.data.conversation import IGNORE_INDEX, Tokens
from distill_tune.data.sources import RowError


class Read(NamedTuple):
    """A row as student and teachers read it.

    Attributes:
        teacher: behind the prompt of teachers that have the rows' tokenizer; the student's, where they have no own.
        others: of teachers of other tokenizers, and where the student's supervised tokens lie in each.
    """

    student: Tokens
    teacher: Tokens
    others: Sequence[tuple[Tokens, RowAlignment]] = ()


def cut_alike(read: Read, bound: int | None, bound_of_teacher: int | None, of_others: Sequence[int | None]) -> Read:
    """Each up to its bound, and then up to where the answers of all have come; a cut is taken at a boundary that the
    tokens of both have.

    Args:
        bound, bound_of_teacher, of_others: tokens at most; None for all.

    Raises:
        RowError: a teacher's prompt is longer than it reads.
    """
    student = first(read.student, bound)
    teacher = student if read.teacher is read.student else first(read.teacher, bound_of_teacher)
    others = [first(tokens, most) for (tokens, _), most in zip(read.others, of_others, strict=True)]
    if not len(supervised(read.student.labels)):
        wholes = [read.teacher, *(tokens for tokens, _ in read.others)]
        for cut, whole in zip([teacher, *others], wholes, strict=True):
            if whole is not read.student and len(cut.tokens) < len(whole.tokens):
                raise RowError(f"the teacher's prompt has {len(whole.tokens)} tokens, more than it reads")
        return Read(student, teacher, [(cut, of) for cut, (_, of) in zip(others, read.others, strict=True)])
    learned = len(supervised(student.labels))
    while True:
        kept = min(learned, len(supervised(teacher.labels)))
        for cut, (whole, alignment) in zip(others, read.others, strict=True):
            kept = _last_boundary(alignment.positions, kept, len(supervised(cut.labels)), len(supervised(whole.labels)))
        if kept == learned:
            break
        learned = kept
    cut_others = []
    for cut, (_, alignment) in zip(others, read.others, strict=True):
        positions = alignment.positions[:kept]
        its = cut if kept == len(alignment.positions) else up_to(cut, int(alignment.positions[kept, AT]))
        cut_others.append((its, alignment._replace(positions=positions)))
    return Read(up_to(student, kept), up_to(teacher, kept), cut_others)


def _last_boundary(positions: numpy.ndarray, kept: int, of_teacher: int, all_of_teacher: int) -> int:
    """How many of the student's supervised tokens end where a token of the teacher's does, up to ``kept``, with no more
    than ``of_teacher`` of its tokens."""
    if kept == len(positions) and of_teacher == all_of_teacher:
        return kept
    # A boundary before token i: it begins where the teacher's token does.
    begins = (positions[:, AT] >= 0) & (positions[:, OFFSET] == 0) & (positions[:, AT] <= of_teacher)
    found = begins[: kept + 1].nonzero()[0]
    return int(found[-1]) if len(found) else 0


def first(row: Tokens, count: int | None) -> Tokens:
    """A row's first so many tokens; all of them without a number."""
    is_text = None if row.is_text is None else row.is_text[:count]
    return row._replace(tokens=row.tokens[:count], labels=row.labels[:count], is_text=is_text)


def supervised(labels: numpy.ndarray) -> numpy.ndarray:
    """The labels that are predicted: a row's first token never is."""
    return labels[1:][labels[1:] != IGNORE_INDEX]


def up_to(row: Tokens, count: int) -> Tokens:
    """A row up to its so manieth supervised token."""
    places = (row.labels[1:] != IGNORE_INDEX).nonzero()[0]
    return row if count == len(places) else first(row, int(places[count]) + 1)
