"""A text as two tokenizers cut it, by the lengths of the tokens: what meets where, found byte by byte."""

import dataclasses
import itertools

import torch

from distill_tune.losses import Distribution
from distill_tune.losses.aligned import AlignedPositions, AlignedWord, TokenClasses

# Lengths of the student's and the teacher's tokens between common boundaries: 1 to 4 tokens on either side.
SPANS = [([3], [3]), ([2, 2], [4]), ([5], [1, 1, 3]), ([1, 1, 1, 1], [4]), ([2, 3, 1], [3, 3]), ([3, 2], [1, 1, 2, 1])]


def positions_of(student_lengths, teacher_lengths, masked=()):
    """Of a text that the student's tokens cover; ``masked`` rows are not known."""
    starts = [0, *itertools.accumulate(student_lengths)]
    teacher_starts = [0, *itertools.accumulate(teacher_lengths)]
    holds = [row for row, length in enumerate(teacher_lengths) for _ in range(length)]  # each byte's teacher token
    known = [row not in masked for row in range(len(student_lengths))]
    at = [holds[start] if fine else 0 for start, fine in zip(starts, known, strict=False)]
    last = [holds[end - 1] if fine else 0 for end, fine in zip(starts[1:], known, strict=True)]
    boundary = [fine and start in teacher_starts for start, fine in zip(starts, known, strict=False)]
    ends = [fine and end in teacher_starts for end, fine in zip(starts[1:], known, strict=True)]
    return AlignedPositions(*(torch.tensor(column) for column in (at, known, boundary, last, ends)))


def example(spans=SPANS, masked=(), v_s=19, v_t=23, seed=0, scale=2.0):
    """Logits ``[c, v_s]`` and ``[c_t, v_t]``, targets, word, and the rows of each span that has no masked row."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [[length for span in spans for length in span[side]] for side in (0, 1)]
    student, teacher = (
        torch.randn(len(of), v, generator=generator) * scale for of, v in zip(lengths, (v_s, v_t), strict=True)
    )
    targets, own = (
        torch.randint(v, (len(of),), generator=generator) for of, v in zip(lengths, (v_s, v_t), strict=True)
    )
    rows, i, t = [], 0, 0
    for mine, theirs in spans:
        pair = list(range(i, i + len(mine))), list(range(t, t + len(theirs)))
        rows += [] if set(pair[0]) & set(masked) else [pair]
        i, t = i + len(mine), t + len(theirs)
    shared = torch.randperm(v_s, generator=generator)[: v_s // 2], torch.randperm(v_t, generator=generator)[: v_s // 2]
    positions = positions_of(*lengths, masked)
    word = AlignedWord(teacher, own, positions, classes_of(v_s, v_t, *shared), positions)
    return student, teacher, targets, word, rows


def classes_of(v_s, v_t, shared_student, shared_teacher):
    """A class for each shared pair, and the rest."""
    m = len(shared_student)
    student, teacher = torch.full((v_s,), m), torch.full((v_t,), m)
    student[shared_student], teacher[shared_teacher] = torch.arange(m), torch.arange(m)
    return TokenClasses(student, teacher, m + 1, shared_student, shared_teacher)


def same_tokenizer(n=11, v=17, seed=0, scale=2.0):
    """Both sides with one vocabulary, row by row."""
    student, teacher, targets, word, rows = example([([2], [2])] * n, v_s=v, v_t=v, seed=seed, scale=scale)
    classes = classes_of(v, v, torch.arange(v), torch.arange(v))
    return student, teacher, targets, dataclasses.replace(word, targets=targets, classes=classes), rows


def compared(method, student, teacher, targets, word, temperature=1.0):
    """What the head would ask."""
    sides = [
        Distribution((logits / temperature).log_softmax(-1), (logits / temperature).softmax(-1))
        for logits in (student, teacher)
    ]
    return method(*sides, targets, word)
