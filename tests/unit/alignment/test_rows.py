"""Rows of two tokenizers, against a reference that walks byte by byte."""

from itertools import pairwise

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_tune.alignment.columns import AT, INTO, LAST, OFFSET, TOKEN_AT, TOKEN_LAST
from distill_tune.alignment.rows import align, cut_alike
from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.data.conversation import IGNORE_INDEX, Tokens

NOT_ALIGNED = [-1, 0, -1, 0, -1, -1]
BEGIN, END = "<begin>", "<end>"


class Writer:
    """A tokenizer that gives each new token the next id, so that a test can write the tokens that it means."""

    def __init__(self) -> None:
        self.ids: dict[bytes | str, int] = {}

    def row(self, *parts: bytes | str | list[bytes | str]) -> Tokens:
        """Lists are learned; a text is a control token."""
        tokens, labels = [], []
        for part in parts:
            for token in part if isinstance(part, list) else [part]:
                tokens.append(self.ids.setdefault(token, len(self.ids)))
                labels.append(tokens[-1] if isinstance(part, list) else IGNORE_INDEX)
        return Tokens(numpy.array(tokens, numpy.int32), numpy.array(labels, numpy.int32))

    @property
    def bytes(self) -> TokenBytes:
        of = tuple(token if isinstance(token, bytes) else None for token in self.ids)
        return TokenBytes(of, {token: at for token, at in self.ids.items() if isinstance(token, str)})


def aligned(student: list, teacher: list):
    """Of rows whose tokens are given; what each position says, without the ids."""
    writer, its = Writer(), Writer()
    mine, theirs = writer.row(*student), its.row(*teacher)
    found = align(mine, theirs, writer.bytes, its.bytes)
    learned = theirs.tokens[1:][theirs.labels[1:] != IGNORE_INDEX]
    for position in found.positions:
        if position[AT] >= 0:
            assert learned[position[AT]] == position[TOKEN_AT]
            assert learned[position[LAST]] == position[TOKEN_LAST]
        else:
            assert position.tolist() == NOT_ALIGNED
    return found, [tuple(position[[AT, OFFSET, LAST, INTO]].tolist()) for position in found.positions]


def plain(text: bytes, student: list[bytes], teacher: list[bytes]) -> list[tuple[int, int, int, int]]:
    """Of two ways to cut one text, byte by byte."""
    holder = [(number, at) for number, token in enumerate(teacher) for at in range(len(token))]
    found, begin = [], 0
    for token in student:
        at, offset = holder[begin]
        last, into = holder[begin + len(token) - 1]
        found.append((at, offset, last, into + 1))
        begin += len(token)
    assert begin == len(text) == len(holder)
    return found


def cut(text: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if 0 < place < len(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(edges)]


TEXTS = st.text(st.sampled_from("ab 1\n你🙂é"), min_size=1, max_size=12).map(str.encode)
PLACES = st.sets(st.integers(1, 40))


@given(TEXTS, PLACES, PLACES)
def test_one_text_cut_in_two_ways_is_met_byte_by_byte(text, places, its_places):
    student, teacher = cut(text, places), cut(text, its_places)
    found, positions = aligned([BEGIN, b"question", [*student, END]], [b"Q", [*teacher, END]])
    assert positions == [*plain(text, student, teacher), (len(teacher), 0, len(teacher), 0)]
    assert (found.num_bytes, found.num_masked_bytes) == (len(text), 0)


@settings(max_examples=300)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.lists(TEXTS, min_size=1, max_size=3), TEXTS, PLACES, PLACES)
def test_of_any_two_texts_what_is_aligned_has_the_same_bytes(mine, theirs, shared, places, its_places):
    rows = []
    for texts, where in ((mine, places), (theirs, its_places)):
        runs = [[*cut(text, where), *cut(shared, where), *cut(text, where), END] for text in texts]
        rows.append([part for run in runs for part in (b"?", run)])
    student, teacher = ([token for part in row if isinstance(part, list) for token in part] for row in rows)
    found, positions = aligned(*rows)
    last_at = last_last = -1
    num_bytes = 0
    for token, (at, offset, last, into) in zip(student, positions, strict=True):
        num_bytes += 0 if token == END else len(token)
        if at < 0:
            continue
        assert last_at <= at <= last
        assert last_last <= last
        last_at, last_last = at, last
        if token == END:
            assert (teacher[at], last, offset, into) == (END, at, 0, 0)
            continue
        assert END not in teacher[at : last + 1]
        its_bytes = b"".join(teacher[at : last + 1])
        before = b" " if offset == -1 else b""
        assert before + its_bytes[max(0, offset) : len(its_bytes) - len(teacher[last]) + into] == token
        assert (0 if token == b" " == before else 1) <= into <= len(teacher[last])
    masked = [
        len(token) for token, position in zip(student, positions, strict=True) if position[0] < 0 and token != END
    ]
    assert (found.num_bytes, found.num_masked_bytes) == (num_bytes, sum(masked))


def test_tokens_that_overlap_on_both_sides():
    _, positions = aligned([b"?", [b"ab", b"cde", b"f", b"gh"]], [b"?", [b"abc", b"d", b"efg", b"h"]])
    assert positions == [(0, 0, 0, 2), (0, 2, 2, 1), (2, 1, 2, 2), (2, 2, 3, 1)]


def test_a_character_in_bytes_is_met_by_one_that_has_it_whole():
    smile = "🙂".encode()
    _, positions = aligned([b"?", [b"a", *(smile[at : at + 1] for at in range(4))]], [b"?", [b"a" + smile]])
    assert positions == [(0, 0, 0, 1), (0, 1, 0, 2), (0, 2, 0, 3), (0, 3, 0, 4), (0, 4, 0, 5)]


def test_turns_are_met_each_by_its_own_whatever_stands_between():
    student = [BEGIN, b"one", [b"yes", END], b"two", b"more", [b"no", b"!", END]]
    teacher = [b"Q: one A:", [b"y", b"es", "</s>"], b"Q:", [b"no!", "</s>"], b"\n"]
    found, positions = aligned(student, teacher)
    assert positions == [(0, 0, 1, 2), (2, 0, 2, 0), (3, 0, 3, 2), (3, 2, 3, 3), (4, 0, 4, 0)]
    assert found.num_masked_bytes == 0


def test_what_the_student_alone_writes_is_masked_and_counted():
    thought = [b"<think>", b"\n\n", b"</think>", b"\n\n"]
    found, positions = aligned([b"?", [*thought, b"yes", END]], [b"?", [b"yes", END]])
    assert positions == [(-1, 0, -1, 0)] * 4 + [(0, 0, 0, 3), (1, 0, 1, 0)]
    assert (found.num_bytes, found.num_masked_bytes) == (len(b"".join(thought)) + 3, len(b"".join(thought)))
    _, positions = aligned([b"?", [b"<", b"p>", END]], [b"?", [*thought, b"<p", b">", END]])
    assert positions == [(4, 0, 4, 1), (4, 1, 5, 1), (6, 0, 6, 0)]


def test_white_space_at_the_ends_of_one_side_is_not_what_differs():
    _, positions = aligned([b"?", [b"He", b"llo", b".", END]], [b"?", [b" Hello", b".", b" ", END]])
    assert positions == [(0, 1, 0, 3), (0, 3, 0, 6), (1, 0, 1, 1), (3, 0, 3, 0)]
    found, positions = aligned([b"?", [b" He", b"llo", b".", b"\n", END]], [b"?", [b"Hello", b".", END]])
    assert positions == [(0, -1, 0, 2), (0, 2, 0, 5), (1, 0, 1, 1), (-1, 0, -1, 0), (2, 0, 2, 0)]
    assert found.num_masked_bytes == 1
    _, positions = aligned([b"?", [b"x", b"])\n", END]], [b"?", [b"x", b"])", END]])
    assert positions == [(0, 0, 0, 1), (-1, 0, -1, 0), (2, 0, 2, 0)]
    _, positions = aligned([b"?", [b"\n", b"Hello", END, b"\n"]], [b"?", [b" ", b"Hello", b"\n", END]])
    assert positions == [(-1, 0, -1, 0), (1, 0, 1, 5), (3, 0, 3, 0), (-1, 0, -1, 0)]


@given(TEXTS, PLACES, PLACES, st.booleans())
def test_a_space_that_the_student_alone_writes_before_a_text_is_met_by_what_follows(text, places, its_places, is_alone):
    text = b"a" + text
    student, teacher = cut(text, places), cut(text, its_places)
    following = plain(text, student, teacher)
    if is_alone:
        student, wanted = [b" ", *student], [(0, -1, 0, 0), *following]
    else:
        student, wanted = [b" " + student[0], *student[1:]], [(0, -1, *following[0][2:]), *following[1:]]
    end = len(teacher)
    found, positions = aligned([BEGIN, [*student, END]], [b"Q", [*teacher, END]])
    assert positions == [*wanted, (end, 0, end, 0)]
    assert (found.num_bytes, found.num_masked_bytes) == (1 + len(text), 0)
    # In every answer, and behind a control token.
    mine, its = ([*row, "<tool>", *row, END] for row in (student, teacher))
    _, positions = aligned([b"?", mine, b"?", mine], [b"?", its, b"?", its])
    for number in range(4):
        first = number * (end + 1)
        shifted = [(at + first, offset, last + first, into) for at, offset, last, into in [*wanted, (end, 0, end, 0)]]
        assert positions[number * len(shifted) :][: len(shifted)] == shifted


def test_a_space_elsewhere_or_before_nothing_is_no_part_of_what_follows():
    for student, teacher, wanted in (
        ([b" ", END], [END], [(-1, 0, -1, 0), (0, 0, 0, 0)]),
        ([b"one", b" two"], [b"one", b"two"], [(0, 0, 0, 3), (-1, 0, -1, 0)]),
        ([b"  two"], [b"two"], [(-1, 0, -1, 0)]),
        ([b" two"], [b"\ntwo"], [(-1, 0, -1, 0)]),  # within a token that begins otherwise
        ([b" two"], [b"\n", b"two"], [(1, -1, 1, 3)]),
        ([b" two"], [b" two"], [(0, 0, 0, 4)]),
    ):
        assert aligned([b"?", student], [b"?", teacher])[1] == wanted
    assert aligned([b"?", [b" "], b"?", [b"two"]], [b"?", [b"two"]])[1][0] == (-1, 0, -1, 0)


def test_a_token_within_one_that_begins_otherwise_is_masked():
    _, positions = aligned([b"?", [b"x", b"Hello", b" there"]], [b"?", [b"yHello", b" there"]])
    assert positions == [(-1, 0, -1, 0), (-1, 0, -1, 0), (1, 0, 1, 6)]


def test_a_text_that_a_normaliser_changed_is_met_where_it_is_the_same():
    student = [b"?", [b"The ", "e\u0301t".encode(), "é".encode(), b" was warm", b".", END]]
    teacher = [b"?", [b"The", b" ", "ét".encode(), "é".encode(), b" was", b" warm.", END]]
    _, positions = aligned(student, teacher)
    assert positions == [(0, 0, 1, 1), (-1, 0, -1, 0), (3, 0, 3, 2), (4, 0, 5, 5), (5, 5, 5, 6), (6, 0, 6, 0)]


def test_an_answer_cut_on_one_side_is_met_as_far_as_it_goes():
    _, positions = aligned([b"?", [b"one", b" two", b" three"]], [b"?", [b"one two"]])
    assert positions == [(0, 0, 0, 3), (0, 3, 0, 7), (-1, 0, -1, 0)]


def test_the_first_token_of_a_row_is_not_predicted():
    _, positions = aligned([[b"ab", b"cd", b"ef"]], [[b"a", b"b", b"cde", b"f"]])
    assert positions == [(1, 0, 1, 2), (1, 2, 2, 1)]
    _, positions = aligned([[b"a", b"bc", b"d"]], [[b"ab", b"cd"]])
    assert positions == [(-1, 0, -1, 0), (0, 1, 0, 2)]


def test_control_tokens_within_an_answer_are_met_by_those_of_the_same_text():
    student = [b"?", ["<tool>", b"run", b"()", "<mine>", b" or wait", END]]
    teacher = [b"?", ["<tool>", b"run()", "<its>", b" or", b" wait", "</s>"]]
    _, positions = aligned(student, teacher)
    assert positions == [(0, 0, 0, 0), (1, 0, 1, 3), (1, 3, 1, 5), (-1, 0, -1, 0), (3, 0, 4, 5), (5, 0, 5, 0)]


@pytest.mark.parametrize("empty", [[b"?"], [b"?", []]])
def test_rows_without_an_answer(empty):
    assert aligned(empty, [b"?", [b"yes", END]])[1] == []
    assert aligned([b"?", [b"yes", END]], empty)[1] == [(-1, 0, -1, 0)] * 2


def test_rows_of_other_numbers_of_answers_are_met_as_one():
    _, positions = aligned([b"?", [b"first", END], b"?", [b"second", END]], [b"?", [b"first", b"second", END]])
    assert positions == [(0, 0, 0, 5), (-1, 0, -1, 0), (1, 0, 1, 6), (2, 0, 2, 0)]


STUDENT = [BEGIN, b"question", [b"one", b" two", b" th", b"ree", END], b"\n"]
TEACHER = [b"Q", [b"one two", b" three", END]]


def bounded(student_bound: int | None, teacher_bound: int | None, student=STUDENT, teacher=TEACHER):
    """Tokens of either row, and positions, that are left."""
    writer, its = Writer(), Writer()
    mine, theirs = writer.row(*student), its.row(*teacher)
    found = align(mine, theirs, writer.bytes, its.bytes)
    mine, theirs, found = cut_alike(mine, theirs, found, student_bound, teacher_bound)
    assert (mine.labels[1:] != IGNORE_INDEX).sum() == len(found.positions)
    assert found.positions[:, LAST].max(initial=-1) < (theirs.labels[1:] != IGNORE_INDEX).sum()
    return len(mine.tokens), len(theirs.tokens), len(found.positions)


@pytest.mark.parametrize(
    ("student_bound", "teacher_bound", "left"),
    [
        (None, None, (8, 4, 5)),
        (7, 4, (7, 4, 5)),  # nothing of the answer is cut
        (6, None, (6, 3, 4)),  # the end
        (5, None, (4, 2, 2)),  # within " three"
        (3, None, (2, 1, 0)),  # within "one two"
        (None, 3, (6, 3, 4)),
        (None, 2, (4, 2, 2)),
        (6, 2, (4, 2, 2)),
        (None, 1, (2, 1, 0)),
        (1, 1, (1, 1, 0)),
    ],
)
def test_rows_are_cut_where_both_begin_a_token(student_bound, teacher_bound, left):
    assert bounded(student_bound, teacher_bound) == left


@pytest.mark.parametrize(("student_bound", "left"), [(4, (4, 4, 2)), (5, (4, 4, 2)), (6, (6, 5, 4))])
def test_rows_are_cut_before_a_space_that_the_student_alone_writes_and_not_behind_it(student_bound, left):
    student = [b"?", [b" one", END], b"?", [b" ", b"4", END]]
    assert bounded(student_bound, None, student, [b"?", [b"one", END], b"?", [b"4", END]]) == left
