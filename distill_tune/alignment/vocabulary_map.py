"""The map between two vocabularies, by the bytes of their tokens; made once for a pair of tokenizers."""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable, Container, Mapping, Sequence, Set
from pathlib import Path

import numpy
import torch

from distill_tune.alignment.columns import AT, INTO, LAST, OFFSET, TOKEN_AT, TOKEN_LAST
from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.cache_folder import cache_folder, delete_unused
from distill_tune.disk import replaced_whole
from distill_tune.losses.aligned import AlignedPositions, TokenClasses
from distill_tune.losses.byte_moves import CHAIN, NONE, WHOLE, ByteMoves, TokenLists

_KEPT_LISTS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Continuations:
    """What may follow some bytes of a teacher's token; or a space before it, see :meth:`VocabularyMap.continuations`.

    Attributes:
        teacher: the teacher's tokens that begin with these bytes, by their bytes, ``[k]``, int32.
        teacher_columns: of each, the column of the longest token of the student's that is a byte-prefix of what
            follows; -1 where nothing follows, or the student has no such token. ``[k]``, int32.
        student: the student's tokens that begin as a column does, ``[m]``, int32.
        student_columns: of each, the longest such column, ``[m]``, int32.
        columns: by the bytes of a student's token.
        num_columns: these, and those of control tokens.
    """

    teacher: torch.Tensor
    teacher_columns: torch.Tensor
    student: torch.Tensor
    student_columns: torch.Tensor
    columns: dict[bytes, int]
    num_columns: int


class VocabularyMap:
    """Both vocabularies in classes, and what the rows of a batch need of them.

    A teacher's token is of the class of the longest token of the student's that is a byte-prefix of it. A student's
    token that is no such prefix is of the longest class whose bytes it begins with. Ends of answers are one class, or
    each one its own where both tokenizers have the same; special tokens of the same text are one class each. Everything
    else, unused ids and padding too, is the rest.

    Args:
        student, teacher: the bytes of their tokens.
        student_size, teacher_size: how many logits their models have; no fewer than tokens are used.
        student_ends, teacher_ends: ids of the tokens that end an answer.
    """

    def __init__(
        self,
        student: TokenBytes,
        teacher: TokenBytes,
        student_size: int,
        teacher_size: int,
        student_ends: Set[int],
        teacher_ends: Set[int],
    ) -> None:
        self._student, self._teacher = _Vocabulary(student.of, student_size), _Vocabulary(teacher.of, teacher_size)
        self._teacher_lengths = teacher.lengths
        self._controls = _paired_controls(
            _within(student.controls, student_size), _within(teacher.controls, teacher_size), student_ends, teacher_ends
        )
        made = _kept(self._place(), self._made)
        self._classes = TokenClasses(
            torch.from_numpy(made["student"]),
            torch.from_numpy(made["teacher"]),
            int(made["num_classes"]),
            torch.from_numpy(made["shared_student"]),
            torch.from_numpy(made["shared_teacher"]),
        )
        self._student_class, self._teacher_class = made["student"], made["teacher"]
        self._names_class = made["names_class"]
        self._continuations: Callable[[bytes], Continuations] = functools.lru_cache(_KEPT_LISTS)(self._continue)
        self._ends: Callable[[int, int, int, bytes | None], torch.Tensor] = functools.lru_cache(_KEPT_LISTS)(self._end)
        self._classes_on: Callable[[torch.device], TokenClasses] = functools.cache(self._classes.to)

    def token_classes(self, device: torch.device) -> TokenClasses:
        """The same tensors at each call."""
        return self._classes_on(device)

    def continuations(self, prefix: bytes) -> Continuations:
        """Of a teacher's token that begins with some bytes.

        Without any: of any token of the teacher's where the student's text has a space before it. What follows is the
        space and the token's bytes; control tokens, at the end of the lists, have the columns behind all others as they
        have classes, and what has no class is of no column.
        """
        return self._continuations(prefix)

    def positions(self, alignment: numpy.ndarray, targets: numpy.ndarray) -> AlignedPositions:
        """
        Args:
            alignment: of the student's supervised tokens, ``[n, 6]``, int; see
                :mod:`~distill_tune.alignment.columns`.
            targets: these tokens, ``[n]``, int.

        Returns:
            Positions on the CPU, with their moves.
        """
        targets = targets.astype(numpy.int64)
        known = alignment[:, AT] >= 0
        boundary = known & (alignment[:, OFFSET] == 0)
        at, last = (numpy.where(known, alignment[:, column], 0).astype(numpy.int64) for column in (AT, LAST))
        token_at = numpy.where(known, alignment[:, TOKEN_AT], 0)
        into, token_last = (numpy.where(known, alignment[:, column], 0) for column in (INTO, TOKEN_LAST))
        ends = known & ((into == 0) | (into == self._teacher_lengths[token_last]))
        of_one_class = self._student_class[targets] == self._teacher_class[token_at]
        plain = ~known | (boundary & (at == last) & of_one_class)
        rows = _Moves(len(targets))
        for row in numpy.flatnonzero(~plain).tolist():
            self._move(rows, row, int(targets[row]), alignment[row].tolist())
        return AlignedPositions(
            torch.from_numpy(at),
            torch.from_numpy(known),
            torch.from_numpy(boundary),
            torch.from_numpy(last),
            torch.from_numpy(ends),
            rows.moves(),
        )

    def _move(self, rows: "_Moves", row: int, y: int, aligned: list[int]) -> None:
        prefix, column = None, None
        if aligned[OFFSET] == 0:
            to = int(self._student_class[y]) if self._names_class[y] else -1
        else:
            token = self._teacher.of(aligned[TOKEN_AT])
            prefix = token[: max(0, aligned[OFFSET])]
            following = self.continuations(prefix)
            to = following.columns.get(self._student.of(y), -1)
            rank = self._teacher.place(aligned[TOKEN_AT]) - self._teacher.range(prefix)[0]
            column = int(following.teacher_columns[rank])
            rows.inside[row], rows.rank[row] = rows.list_of(prefix, following), rank
        if aligned[AT] != aligned[LAST]:
            ends = self._ends(y, aligned[INTO], aligned[TOKEN_LAST], prefix)
            rows.tail[row] = rows.tail_of((y, aligned[INTO], aligned[TOKEN_LAST], prefix), ends)
            rows.share[row], rows.to[row] = CHAIN, to
        elif column is None or column != to or to < 0:
            rows.share[row], rows.to[row] = WHOLE, to

    def _continue(self, prefix: bytes) -> Continuations:
        low, high = self._teacher.range(prefix)
        before = b"" if prefix else b" "
        following = [before + text[len(prefix) :] for text in self._teacher.texts[low:high]]
        longest = [self._student.longest_prefix(text) for text in following]
        # In this order a column comes behind those that are prefixes of it.
        columns = {text: number for number, text in enumerate(sorted({text for text in longest if text}))}
        of_student = numpy.full(len(self._student.texts), -1, numpy.int32)
        for text, number in columns.items():
            first, end = self._student.range(text)
            of_student[first:end] = number
        listed = numpy.flatnonzero(of_student >= 0)
        teacher = self._teacher.ids[low:high], numpy.array([columns.get(text, -1) for text in longest], numpy.int64)
        mine, num_columns = (self._student.ids[listed], of_student[listed]), len(columns)
        if not prefix:
            rest = self._classes.num_classes - 1
            first = rest - len(self._controls)
            paired = numpy.flatnonzero((self._student_class >= first) & (self._student_class < rest))
            mine = _behind(mine, paired, self._student_class[paired] - first + num_columns)
            others = numpy.setdiff1d(numpy.arange(self._teacher.size), teacher[0])
            of_others = self._teacher_class[others]
            teacher = _behind(teacher, others, numpy.where(of_others < rest, of_others - first + num_columns, -1))
            num_columns += len(self._controls)
        return Continuations(*_tensors(teacher), *_tensors(mine), columns, num_columns)

    def _end(self, y: int, into: int, token_last: int, prefix: bytes | None) -> torch.Tensor:
        """The teacher's tokens with which a student's token y may end, so that the text is of no longer column."""
        if into == 0:
            return torch.tensor([token_last], dtype=torch.int32)
        text, end = self._student.of(y), self._teacher.of(token_last)[:into]
        low, high = self._teacher.range(end)
        allowed = numpy.ones(high - low, bool)
        columns: Container[bytes] | None = None
        if prefix is not None and text in self.continuations(prefix).columns:
            columns = self.continuations(prefix).columns
        elif prefix is None and self._names_class[y]:
            columns = self._classes_by_bytes
        first, stop = self._student.range(text)
        for longer in self._student.texts[first:stop]:
            if len(longer) > len(text) and (columns is None or longer in columns):
                start, behind = self._teacher.range(end + longer[len(text) :])
                allowed[start - low : behind - low] = False
        return torch.from_numpy(self._teacher.ids[low:high][allowed].astype(numpy.int32))

    @functools.cached_property
    def _classes_by_bytes(self) -> Set[bytes]:
        return {text for text, token in self._student.token_of.items() if self._names_class[token]}

    def _made(self) -> dict[str, numpy.ndarray]:
        student, teacher = self._student, self._teacher
        names = {text: student.longest_prefix(text) for text in teacher.token_of}
        number = {text: i for i, text in enumerate(sorted({name for name in names.values() if name}))}
        longest = max(map(len, number), default=0)
        rest = len(number) + len(self._controls)
        of_student, of_teacher = numpy.full(student.size, rest), numpy.full(teacher.size, rest)
        names_class = numpy.zeros(student.size, bool)
        for text, token in zip(student.texts, student.ids.tolist(), strict=True):
            name = _longest_prefix(text, number, longest)
            of_student[token] = number.get(name, rest)
            names_class[token] = name == text
        for text, token in zip(teacher.texts, teacher.ids.tolist(), strict=True):
            of_teacher[token] = number.get(names[text], rest)
        for i, (student_ids, teacher_ids) in enumerate(self._controls, len(number)):
            of_student[student_ids], of_teacher[teacher_ids] = i, i
            names_class[student_ids] = True
        shared = [(token, teacher.token_of[t]) for t, token in student.token_of.items() if t in teacher.token_of]
        shared += [(s[0], t[0]) for s, t in self._controls if len(s) == len(t) == 1]
        pairs = numpy.array(sorted(shared), numpy.int64).reshape(-1, 2)
        return {
            "student": of_student.astype(numpy.int64),
            "teacher": of_teacher.astype(numpy.int64),
            "num_classes": numpy.array(rest + 1),
            "names_class": names_class,
            "shared_student": numpy.ascontiguousarray(pairs[:, 0]),
            "shared_teacher": numpy.ascontiguousarray(pairs[:, 1]),
        }

    def _place(self) -> Path | None:
        """Where the classes of exactly these vocabularies are kept; None without a folder for it."""
        root = cache_folder()
        if root is None:
            return None
        content = hashlib.sha256(repr((_FORM, self._controls)).encode())
        for vocabulary in (self._student, self._teacher):
            content.update(repr((vocabulary.size, len(vocabulary.texts))).encode())
            content.update(numpy.array([len(text) for text in vocabulary.texts], numpy.int64).tobytes())
            content.update(vocabulary.ids.tobytes())
            content.update(b"".join(vocabulary.texts))
        return root / "vocabularies" / f"{content.hexdigest()[:32]}.npz"


_FORM = 2  # of what is kept


class _Vocabulary:
    """Tokens by their bytes.

    Attributes:
        size: of the logits.
        texts: the tokens' bytes, sorted; control tokens and unused ids are none of them.
        ids: of each of ``texts``, int64.
        token_of: the first token with some bytes.
    """

    def __init__(self, of: Sequence[bytes | None], size: int) -> None:
        self.size = size
        self._of = of
        tokens = sorted((token for token, text in enumerate(of[:size]) if text), key=of.__getitem__)  # type: ignore[arg-type]
        self.texts = [of[token] or b"" for token in tokens]
        self.ids = numpy.array(tokens, numpy.int64)
        self.token_of = dict(zip(reversed(self.texts), reversed(tokens), strict=True))
        self._longest = max(map(len, self.texts), default=0)

    def of(self, token: int) -> bytes:
        """Its bytes; none of a control token."""
        return self._of[token] or b""

    def range(self, prefix: bytes) -> tuple[int, int]:
        """Which of ``texts`` begin so, from and to."""
        low = bisect.bisect_left(self.texts, prefix)
        behind = prefix.rstrip(b"\xff")
        if not behind:
            return low, len(self.texts)
        return low, bisect.bisect_left(self.texts, behind[:-1] + bytes([behind[-1] + 1]), low)

    def place(self, token: int) -> int:
        """Of a token that has bytes, in ``texts``."""
        return int(self._places[token])

    def longest_prefix(self, text: bytes) -> bytes:
        """The longest token that is a byte-prefix of it; none where there is none."""
        return _longest_prefix(text, self.token_of, self._longest)

    @functools.cached_property
    def _places(self) -> numpy.ndarray:
        places = numpy.full(self.size, -1)
        places[self.ids] = numpy.arange(len(self.ids))
        return places


class _Moves:
    """Of n rows, as they are found."""

    def __init__(self, n: int) -> None:
        self.share, self.to, self.rank, self.tail = (numpy.zeros(n, numpy.int64) for _ in range(4))
        self.share[:] = NONE
        self.inside = numpy.full(n, -1)
        self._lists: dict[bytes, int] = {}
        self._continuations: list[Continuations] = []
        self._tail_numbers: dict[tuple[int, int, int, bytes | None], int] = {}
        self._tails: list[torch.Tensor] = []

    def list_of(self, prefix: bytes, following: Continuations) -> int:
        if prefix not in self._lists:
            self._lists[prefix] = len(self._continuations)
            self._continuations.append(following)
        return self._lists[prefix]

    def tail_of(self, key: tuple[int, int, int, bytes | None], ends: torch.Tensor) -> int:
        if key not in self._tail_numbers:
            self._tail_numbers[key] = len(self._tails)
            self._tails.append(ends)
        return self._tail_numbers[key]

    def moves(self) -> ByteMoves:
        lists = self._continuations
        return ByteMoves(
            torch.from_numpy(self.share),
            torch.from_numpy(self.to),
            torch.from_numpy(self.inside),
            torch.from_numpy(self.rank),
            torch.from_numpy(self.tail),
            TokenLists([one.teacher for one in lists], [one.teacher_columns for one in lists]),
            TokenLists([one.student for one in lists], [one.student_columns for one in lists]),
            torch.tensor([one.num_columns for one in lists], dtype=torch.int64),
            TokenLists(self._tails, [torch.zeros_like(ends) for ends in self._tails]),
        )


def _behind(
    listed: tuple[numpy.ndarray, numpy.ndarray], tokens: numpy.ndarray, columns: numpy.ndarray
) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A list's tokens and columns, and more of them."""
    return numpy.concatenate([listed[0], tokens]), numpy.concatenate([listed[1], columns])


def _tensors(listed: tuple[numpy.ndarray, numpy.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(listed[0].astype(numpy.int32)), torch.from_numpy(listed[1].astype(numpy.int32))


def _longest_prefix(text: bytes, tokens: Container[bytes], longest: int) -> bytes:
    for length in range(min(len(text), longest), 0, -1):
        if text[:length] in tokens:
            return text[:length]
    return b""


def _within(controls: Mapping[str, int], size: int) -> dict[str, int]:
    """Those that a model has logits of."""
    return {text: token for text, token in controls.items() if token < size}


def _paired_controls(
    student: Mapping[str, int], teacher: Mapping[str, int], student_ends: Set[int], teacher_ends: Set[int]
) -> list[tuple[list[int], list[int]]]:
    """Ids of control tokens of one class each, of the student and of the teacher."""
    same_text = [(student[text], teacher[text]) for text in sorted(student) if text in teacher]
    ends = [(s, t) for s, t in same_text if s in student_ends and t in teacher_ends]
    paired = [([s], [t]) for s, t in same_text if s not in student_ends and t not in teacher_ends]
    if len(ends) == len(student_ends) == len(teacher_ends):
        return [([s], [t]) for s, t in ends] + paired
    if student_ends and teacher_ends:
        return [(sorted(student_ends), sorted(teacher_ends)), *paired]
    return paired


def _kept(place: Path | None, make: Callable[[], dict[str, numpy.ndarray]]) -> dict[str, numpy.ndarray]:
    """What is kept in a file, or made and kept; a file that cannot be read is made anew, an old one deleted."""
    if place is None:
        return make()
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile), numpy.load(place) as kept:
        found = dict(kept)
        with contextlib.suppress(OSError):  # another's, or on a disk that cannot be written
            os.utime(place)  # when it was used last
        return found
    made = make()
    with contextlib.suppress(OSError):  # a disk that is full or broken keeps nothing
        place.parent.mkdir(parents=True, exist_ok=True)
        with replaced_whole(place) as partial, partial.open("wb") as file:
            numpy.savez(file, **made)  # type: ignore[arg-type]
    delete_unused(place.parent)
    return made
