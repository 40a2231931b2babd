"""The answers of a row in the tokens of student and teacher, matched byte by byte."""

import dataclasses
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy

from distill_tune.alignment.columns import AT, INTO, LAST, OFFSET, TOKEN_AT, TOKEN_LAST
from distill_tune.alignment.shared_words import shared_words
from distill_tune.alignment.token_bytes import WHITE_SPACE, TokenBytes
from distill_tune.data.conversation import IGNORE_INDEX, Tokens, first_tokens, num_same

# What a learned run spells, as symbols: its bytes, the ends of an answer in their order, other control tokens.
_END, _CONTROL = 256, 1024
_SHORTEST = 4  # bytes that two texts which differ share; fewer may be chance
_WHITE_SPACE = list(WHITE_SPACE)
_WORD = re.compile(rb" ?[A-Za-z0-9]+|[\xc0-\xff][\x80-\xbf]*|.", re.DOTALL)


@dataclasses.dataclass(frozen=True, eq=False)
class RowAlignment:
    """
    Attributes:
        positions: of each supervised token of the student, where the teacher's are that it is to follow, ``[n_s, 6]``,
            int32; see :mod:`~distill_tune.alignment.columns`.
        lengths: bytes of each of these tokens, ``[n_s]``, int32; none of a control token.
    """

    positions: numpy.ndarray
    lengths: numpy.ndarray

    @property
    def num_bytes(self) -> int:
        """Of the student's answers."""
        return int(self.lengths.sum())

    @property
    def num_masked_bytes(self) -> int:
        """Of tokens that are not aligned."""
        return int(self.lengths[self.positions[:, AT] < 0].sum())

    def first(self, count: int) -> "RowAlignment":
        """Of the first supervised tokens alone."""
        return RowAlignment(self.positions[:count], self.lengths[:count])


def align(student: Tokens, teacher: Tokens, student_bytes: TokenBytes, teacher_bytes: TokenBytes) -> RowAlignment:
    """Which of the teacher's supervised tokens each of the student's is to follow.

    Runs of learned tokens are matched in their order; where the two rows have not equally many, all of them as one.
    What is the same at the beginning and at the end of a run is matched, and of what stands between, the longer parts
    that both have. The control tokens behind an answer's text are the same to each other, others where their texts are.
    A space that the student alone writes before a text, as tokenizers of SentencePiece do, belongs to what follows it.

    A token of the student is masked where it is not matched as a whole, or where it stands within a token of the
    teacher's that begins otherwise than the student's text; but white space that the teacher alone writes may stand
    there.

    Args:
        student, teacher: the same conversation in the tokens of each.
    """
    controls: dict[str, int] = {}
    mine, its = _Learned.of(student, student_bytes, controls, -1), _Learned.of(teacher, teacher_bytes, controls, -2)
    lengths = mine.lengths[mine.num_unpredicted :].astype(numpy.int32)
    return RowAlignment(_positions(mine, its, _matched_runs(mine, its)), lengths)


def cut_alike(
    student: Tokens,
    teacher: Tokens,
    alignment: RowAlignment,
    student_bound: int | None = None,
    teacher_bound: int | None = None,
) -> tuple[Tokens, Tokens, RowAlignment]:
    """Both rows within their bounds; where that takes of an answer, up to the last common boundary that both keep.

    Args:
        student, teacher: whole rows.
        alignment: of them.
        student_bound, teacher_bound: how many tokens each may have; None for all.

    Returns:
        Rows that keep nothing of an answer have no supervised token.
    """
    bounded = first_tokens(student, student_bound), first_tokens(teacher, teacher_bound)
    kept, its_kept = (len(_supervised(row)) for row in bounded)
    if kept == len(_supervised(student)) and its_kept == len(_supervised(teacher)):
        return *bounded, alignment
    at = alignment.positions[: kept + 1, AT]
    last_before = numpy.concatenate([[-1], alignment.positions[:kept, LAST]])[: len(at)]  # not where a space alone is
    is_boundary = (alignment.positions[: kept + 1, OFFSET] <= 0) & (last_before < at)
    boundaries = ((at >= 0) & (at <= its_kept) & is_boundary).nonzero()[0]
    count, its_count = (int(boundaries[-1]), int(at[boundaries[-1]])) if len(boundaries) else (0, 0)
    return up_to(bounded[0], count), up_to(bounded[1], its_count), alignment.first(count)


def _supervised(row: Tokens) -> numpy.ndarray:
    """Where the tokens stand that are predicted: a row's first never is."""
    return (row.labels[1:] != IGNORE_INDEX).nonzero()[0] + 1


def up_to(row: Tokens, count: int) -> Tokens:
    """A row up to its so manieth supervised token."""
    supervised = _supervised(row)
    return row if count == len(supervised) else first_tokens(row, int(supervised[count]))


@dataclasses.dataclass(frozen=True, eq=False)
class _Learned:
    """The learned tokens of a row, and what they spell.

    Attributes:
        tokens: their ids, ``[l]``.
        lengths: bytes of each, ``[l]``; 0 of a control token, which is one symbol.
        starts: the first symbol of each, and the end, ``[l + 1]``.
        symbols: ``[m]``, int32.
        runs: the first symbol of each run of learned tokens, and the end, ``[runs + 1]``.
        num_unpredicted: 1 where the row's first token is one of them, else 0.
    """

    tokens: numpy.ndarray
    lengths: numpy.ndarray
    starts: numpy.ndarray
    symbols: numpy.ndarray
    runs: numpy.ndarray
    num_unpredicted: int

    @classmethod
    def of(cls, row: Tokens, token_bytes: TokenBytes, controls: dict[str, int], unknown: int) -> "_Learned":
        """
        Args:
            controls: the symbols of control tokens by their texts, which grow.
            unknown: the symbol of an id without a token.
        """
        places = (row.labels != IGNORE_INDEX).nonzero()[0]
        tokens = row.tokens[places].astype(numpy.int64)
        of = token_bytes.of
        texts = [of[token] or b"" if token < len(of) else b"" for token in tokens.tolist()]
        lengths = numpy.fromiter(map(len, texts), numpy.int64, len(texts))
        starts = numpy.concatenate([[0], numpy.maximum(lengths, 1).cumsum()])
        symbols = numpy.frombuffer(b"".join(text or b"\0" for text in texts), numpy.uint8).astype(numpy.int32)
        first_of_run = numpy.concatenate([[0], (numpy.diff(places) > 1).nonzero()[0] + 1, [len(places)]])
        for at in (lengths == 0).nonzero()[0].tolist():
            text = token_bytes.control_texts.get(int(tokens[at]))
            symbols[starts[at]] = unknown if text is None else controls.setdefault(text, _CONTROL + len(controls))
        for start, stop in zip(first_of_run[:-1].tolist(), first_of_run[1:].tolist(), strict=True):
            for order, at in enumerate(_ends(texts, start, stop)):
                symbols[starts[at]] = _END + order
        return cls(tokens, lengths, starts, symbols, starts[first_of_run], int(len(places) > 0 and places[0] == 0))


def _ends(texts: list[bytes], start: int, stop: int) -> list[int]:
    """The control tokens behind the last text of a run, white space between them or not."""
    last = next((at for at in range(stop - 1, start - 1, -1) if texts[at].strip(WHITE_SPACE)), start - 1)
    return [at for at in range(last + 1, stop) if not texts[at]]


def _matched_runs(mine: _Learned, its: _Learned) -> numpy.ndarray:
    """Of each of the student's symbols, the number of the teacher's that is the same, ``[m]``, int64; -1 for none."""
    found = numpy.full(len(mine.symbols), -1, numpy.int64)
    runs, its_runs = mine.runs, its.runs
    if len(runs) != len(its_runs):
        runs, its_runs = runs[[0, -1]], its_runs[[0, -1]]
    for (start, stop), (its_start, its_stop) in zip(pairwise(runs), pairwise(its_runs), strict=True):
        for at, its_at, size in _matches(mine.symbols[start:stop], its.symbols[its_start:its_stop]):
            found[start + at : start + at + size] = numpy.arange(its_start + its_at, its_start + its_at + size)
    return found


def _matches(mine: numpy.ndarray, its: numpy.ndarray) -> Iterator[tuple[int, int, int]]:
    """What two runs share: where it begins in each, and how long it is.

    What is the same from both ends on, then that again within the white space there, then words in between.
    """
    start, stop, its_start, its_stop = 0, len(mine), 0, len(its)
    for _ in range(2):
        size = num_same(mine[start:stop], its[its_start:its_stop])
        at_end = num_same(mine[start:stop][::-1], its[its_start:its_stop][::-1])
        if at_end == min(stop - start, its_stop - its_start):
            size = 0  # one of them only has more before it
        yield start, its_start, size
        start, its_start = start + size, its_start + size
        size = min(at_end, stop - start, its_stop - its_start)
        stop, its_stop = stop - size, its_stop - size
        yield stop, its_stop, size
        if start == stop or its_start == its_stop:
            return
        start, stop = _without_white_space(mine, start, stop)
        its_start, its_stop = _without_white_space(its, its_start, its_stop)
    words, its_words = _words(mine[start:stop]), _words(its[its_start:its_stop])
    places, its_places = (numpy.cumsum([0, *map(len, found)]).tolist() for found in (words, its_words))
    for at, its_at, size in shared_words(words, its_words):
        if (length := places[at + size] - places[at]) >= _SHORTEST:
            yield start + places[at], its_start + its_places[its_at], length


def _without_white_space(symbols: numpy.ndarray, start: int, stop: int) -> tuple[int, int]:
    """Part of a run without the white space at its ends."""
    others = (~numpy.isin(symbols[start:stop], _WHITE_SPACE)).nonzero()[0]
    return (start + int(others[0]), start + int(others[-1]) + 1) if len(others) else (stop, stop)


def _words(symbols: numpy.ndarray) -> list[tuple[int, ...]]:
    """A run's symbols as words of letters and digits, and single characters of others."""
    text = numpy.where((symbols >= 0) & (symbols < _END), symbols, 0).astype(numpy.uint8).tobytes()
    return [tuple(symbols[word.start() : word.end()].tolist()) for word in _WORD.finditer(text)]


def _positions(mine: _Learned, its: _Learned, matched: numpy.ndarray) -> numpy.ndarray:
    """
    Args:
        matched: of each of the student's symbols, the teacher's; -1 for none.
    """
    found = numpy.zeros((len(mine.tokens), 6), numpy.int32)
    found[:] = (-1, 0, -1, 0, -1, -1)
    if not len(its.tokens):
        return found[mine.num_unpredicted :]
    num_before = _has_space_before(mine, its, matched).astype(numpy.int64)
    first, last = mine.starts[:-1] + num_before, mine.starts[1:] - 1
    its_first, its_last = matched[first], matched[numpy.maximum(first, last)]
    before = numpy.concatenate([[0], (matched >= 0).cumsum()])  # symbols matched before each
    is_matched = before[last + 1] - before[first] == last + 1 - first
    is_whole = is_matched & (its_last - its_first == numpy.maximum(first, last) - first)

    at = numpy.searchsorted(its.starts, its_first, "right") - 1
    at_last = numpy.searchsorted(its.starts, its_last, "right") - 1
    is_read = _read_alike(mine, its, matched, first, its.starts[at], its_first)
    is_aligned = is_whole & is_read & (at >= its.num_unpredicted)

    into = numpy.where(mine.lengths == num_before, 0, its_last + 1 - its.starts[at_last])
    columns = {
        AT: at - its.num_unpredicted,
        OFFSET: its_first - its.starts[at] - num_before,
        LAST: at_last - its.num_unpredicted,
        INTO: into,
        TOKEN_AT: its.tokens[at],
        TOKEN_LAST: its.tokens[at_last],
    }
    for column, values in columns.items():
        found[is_aligned, column] = values[is_aligned]
    return found[mine.num_unpredicted :]


def _has_space_before(mine: _Learned, its: _Learned, matched: numpy.ndarray) -> numpy.ndarray:
    """Whether a token of the student's begins a text with a space that the teacher's text has not, ``[l]``, bool.

    What follows the space, in this token or the next, begins a token of the teacher's.
    """
    first = mine.starts[:-1]
    is_behind_control = numpy.concatenate([[False], mine.lengths[:-1] == 0])
    begins = (numpy.isin(first, mine.runs) | is_behind_control) & (mine.symbols[first] == ord(" "))
    behind = numpy.minimum(first + 1, len(matched) - 1)
    follows = matched[behind]
    is_text = (follows >= 0) & (mine.symbols[behind] >= 0) & (mine.symbols[behind] < _END)
    is_of_run = ~numpy.isin(first + 1, mine.runs)
    return begins & (matched[first] < 0) & is_of_run & is_text & numpy.isin(follows, its.starts)


def _read_alike(
    mine: _Learned,
    its: _Learned,
    matched: numpy.ndarray,
    first: numpy.ndarray,
    its_start: numpy.ndarray,
    its_first: numpy.ndarray,
) -> numpy.ndarray:
    """Whether what a token of the teacher's has before a place is what the student's text has there.

    Args:
        first: places in the student's symbols, ``[l]``.
        its_start, its_first: where the teacher's token begins that has the symbol of that place, and the symbol.
    """
    is_matched = numpy.zeros(len(its.symbols), bool)
    is_matched[matched[matched >= 0]] = True
    is_foreign = ~is_matched & ~numpy.isin(its.symbols, _WHITE_SPACE)
    matched_before, foreign_before = (numpy.concatenate([[0], one.cumsum()]) for one in (is_matched, is_foreign))
    num_matched = matched_before[its_first] - matched_before[its_start]
    begins = matched[first - num_matched] >= its_start
    return (foreign_before[its_first] == foreign_before[its_start]) & ((num_matched == 0) | begins)
