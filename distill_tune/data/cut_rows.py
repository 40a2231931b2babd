"""What of a row student and teachers read up to their bounds: as much of the answers in each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from distill_tune.alignment.rows import RowAlignment, cut_alike, up_to
from distill_tune.data.conversation import IGNORE_INDEX, Tokens, first_tokens
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


def cut_to_bounds(read: Read, bound: int | None, bound_of_teacher: int | None, of_others: Sequence[int | None]) -> Read:
    """Each up to its bound, and then up to where the answers of all have come; a cut is taken at a boundary that the
    tokens of both have.

    Args:
        bound, bound_of_teacher, of_others: tokens at most; None for all.

    Raises:
        RowError: a teacher's prompt is longer than it reads.
    """
    student, teacher, others = first_tokens(read.student, bound), read.teacher, read.others
    while True:
        length = len(student.tokens)
        if read.teacher is not read.student:
            teacher = first_tokens(read.teacher, bound_of_teacher)
            shared = min(len(supervised(row.labels)) for row in (student, teacher))
            student, teacher = up_to(student, shared), up_to(teacher, shared)
        others = list[tuple[Tokens, RowAlignment]]()
        for (whole, aligned), most in zip(read.others, of_others, strict=True):
            cut, its, aligned = cut_alike(read.student, whole, aligned, len(student.tokens), most)
            student = min(student, cut, key=lambda row: len(row.tokens))
            others.append((its, aligned))
        if len(student.tokens) == length:
            break
    cut_of = [
        (teacher, read.teacher),
        *((cut, whole) for (cut, _), (whole, _) in zip(others, read.others, strict=True)),
    ]
    for cut, whole in cut_of if not len(supervised(read.student.labels)) else ():
        if whole is not read.student and len(cut.tokens) < len(whole.tokens):
            raise RowError(f"the teacher's prompt has {len(whole.tokens)} tokens, more than it reads")
    return Read(student, student if read.teacher is read.student else teacher, others)


def supervised(labels: numpy.ndarray) -> numpy.ndarray:
    """The labels that are predicted: a row's first token never is."""
    return labels[1:][labels[1:] != IGNORE_INDEX]
