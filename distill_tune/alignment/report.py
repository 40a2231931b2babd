"""What two tokenizers have in common, and how the answers of some rows meet: for validate and plan."""

import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy

from distill_tune.alignment.columns import AT, OFFSET
from distill_tune.alignment.token_bytes import TokenBytes, split, token_bytes

_SAMPLES = ("2024", "3.14159", "a\n    b", "你好世界", "def f(x):")
_WIDTHS = (18, 36)
_FEW = 0.25  # common boundaries, of the student's tokens


def report(
    student: Any,
    teacher: Any,
    positions: numpy.ndarray,
    student_tokens: numpy.ndarray,
    teacher_tokens: numpy.ndarray,
) -> list[str]:
    """Lines: what the vocabularies share, how the answers meet, how samples split, and which method that speaks for.

    Args:
        student, teacher: their tokenizers, as of :func:`~distill_tune.alignment.token_bytes.token_bytes`.
        positions: the rows' alignments, one after another, ``[n, 6]``, int.
        student_tokens, teacher_tokens: the rows' supervised tokens, ``[n]`` and ``[m]``, int.
    """
    sides = {"student": token_bytes(student), "teacher": token_bytes(teacher)}
    mine, its = sides.values()
    own, others = ({token for token in side.of if token} for side in (mine, its))
    shared = len(own & others)
    is_aligned = positions[:, AT] >= 0
    common = int((is_aligned & (positions[:, OFFSET] == 0)).sum())
    with_space = _share((is_aligned & (positions[:, OFFSET] < 0)).sum(), len(positions))
    lines = [
        _line("tokenizers", *sides),
        _line("ordinary tokens", f"{len(own):,}", f"{len(others):,}"),
        _line("the same bytes", *(f"{shared:,} ({_share(shared, len(of)):.0%})" for of in (own, others))),
        _line(
            "common boundaries",
            f"{_share(common, len(positions)):.1%} of the answers' tokens",
            f"{_share(common, len(teacher_tokens)):.1%}",
        ),
        _line(
            "1,000 characters",
            f"{_per_characters(mine, student_tokens):.0f} tokens",
            f"{_per_characters(its, teacher_tokens):.0f} tokens",
        ),
        *(_line(_shown(text.encode()), *(_split(side, text) for side in (student, teacher))) for text in _SAMPLES),
        *(
            f"the {name}'s tokenizer changes texts: {', '.join(side.notes)}"
            for name, side in sides.items()
            if side.notes
        ),
    ]
    if with_space:
        told = "of the tokens begin with a space before the teacher's text: byte-prefix mass alone learns them"
        lines.append(f"{with_space:.1%} {told}")
    if rest := sum(not any(token[:size] in own for size in range(1, len(token) + 1)) for token in others):
        lines.append(
            f"{rest:,} of the teacher's tokens begin as none of the student's: their probability goes to the rest"
        )
    return [*lines, _method(_share(common, len(positions)))]


def picture(student: Sequence[bytes | None], teacher: Sequence[bytes | None], positions: numpy.ndarray) -> list[str]:
    """Two lines: one row's answers in the tokens of both, with ``|`` where both begin one and ``¦`` where one does.

    Args:
        student, teacher: the bytes of the row's supervised tokens, ``[n_s]`` and ``[n_t]``; None of an end.
        positions: the row's alignment, ``[n_s, 6]``.
    """
    common = ((positions[:, AT] >= 0) & (positions[:, OFFSET] <= 0)).nonzero()[0].tolist()
    cuts = [(0, 0), *((at, int(positions[at, AT])) for at in common), (len(student), len(teacher))]
    lines = ["student ", "teacher "]
    for (start, its_start), (stop, its_stop) in pairwise(dict.fromkeys(cuts)):
        spans = ["¦".join(map(_shown, span)) for span in (student[start:stop], teacher[its_start:its_stop])]
        width = max(map(_width, spans))
        lines = [f"{line}|{_padded(span, width)}" for line, span in zip(lines, spans, strict=True)]
    return lines


def _line(name: str, of_student: str, of_teacher: str) -> str:
    return "".join(_padded(text, width) for text, width in zip((name, of_student), _WIDTHS, strict=True)) + of_teacher


def _padded(text: str, width: int) -> str:
    """Chinese characters are two columns wide."""
    return text + " " * (width - _width(text))


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _per_characters(side: TokenBytes, tokens: numpy.ndarray) -> float:
    """Tokens for 1,000 characters of what they spell."""
    text = b"".join(side.of[token] or b"" for token in tokens.tolist())
    return 1000 * _share(len(tokens), len(text.decode(errors="ignore")))


def _split(tokenizer: Any, text: str) -> str:
    tokens = split(tokenizer, text)
    shown = "|".join(map(_shown, tokens))
    return shown if len(shown) < _WIDTHS[1] else f"{len(tokens)} tokens"


def _shown(token: bytes | None) -> str:
    """Spaces as dots; a part of a character as its bytes."""
    if token is None:
        return "(end)"
    try:
        return token.decode().replace(" ", "·").replace("\n", "\\n")
    except UnicodeDecodeError:
        return f"<{token.hex().upper()}>"


def _method(common: float) -> str:
    if common < _FEW:
        return (
            "method to take: common boundaries are rare; compare byte-prefix mass, by which kd_loss measures unless\n"
            "  it names another method, with the likelihood of what stands between: distill_tune.losses.ChunkLikelihood"
        )
    return "method to take: byte-prefix mass, by which kd_loss measures unless it names another method"


def _share(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else 0.0
