"""The map between two vocabularies: classes, what may follow, what is kept."""

import errno
import itertools
import os
import time

import numpy
import pytest
import torch
from toy_tokenizers import written

from distill_tune.alignment import vocabulary_map
from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.alignment.vocabulary_map import VocabularyMap


def map_of(student, teacher, student_controls=(), teacher_controls=(), ends=((), ()), padding=0):
    """Of tokens in their order, control tokens behind them by their texts."""
    of = [
        TokenBytes(
            (*texts, *[None] * len(controls)), {text: len(texts) + number for number, text in enumerate(controls)}
        )
        for texts, controls in ((student, student_controls), (teacher, teacher_controls))
    ]
    end_ids = [{one.controls[text] for text in texts} for one, texts in zip(of, ends, strict=True)]
    return VocabularyMap(*of, len(of[0].of) + padding, len(of[1].of) + padding, *end_ids)


def classes_of(*arguments, **settings):
    """Of each side the members' places by class, the rest last."""
    classes = map_of(*arguments, **settings).token_classes(torch.device("cpu"))
    return [
        [(of == number).nonzero()[:, 0].tolist() for number in range(classes.num_classes)]
        for of in (classes.student, classes.teacher)
    ]


def test_a_teachers_token_is_of_the_longest_token_of_the_students_that_it_begins_with():
    student, teacher = classes_of([b"a", b"ab", b"b"], [b"abc", b"ac", b"a", b"ba", b"ca"])
    assert teacher == [[1, 2], [0], [3], [4]]  # a, ab, b, the rest
    assert student == [[0], [1], [2], []]


def test_a_students_token_that_is_no_class_is_of_the_longest_that_it_begins_with():
    student, _ = classes_of([b"a", b"ab", b"abc", b"b", b"c"], [b"abx", b"a", b"c"])
    assert student == [[0], [1, 2], [4], [3]]  # a, ab, c, the rest: the teacher has nothing that begins with b


def test_tokens_of_the_same_bytes_are_of_one_class():
    student, teacher = classes_of([b"a", b"a", b"b"], [b"b", b"a", b"b"])
    assert (student, teacher) == ([[0, 1], [2], []], [[1], [0, 2], []])


def test_with_one_tokenizer_every_class_is_one_token():
    texts, controls = [b"a", b"ab", b"b", b"ba"], ["<end>", "<turn>", "<pad>"]
    student, teacher = classes_of(texts, texts, controls, controls, ends=(["<end>", "<turn>"],) * 2, padding=2)
    assert student == teacher
    assert sorted(student[:-1]) == [[token] for token in range(7)]
    assert student[-1] == [7, 8]


def test_control_tokens_beyond_the_logits_have_no_class():
    """As a padding token that was added to a tokenizer, and not to its model."""
    small, large = TokenBytes((b"a", b"b", None), {"<pad>": 2}), TokenBytes((b"a", None, b"b"), {"<pad>": 1})
    for sides, sizes in (((small, large), (2, 3)), ((large, small), (3, 2))):
        classes = VocabularyMap(*sides, *sizes, set(), set()).token_classes(torch.device("cpu"))
        assert (len(classes.student), len(classes.teacher), classes.num_classes) == (*sizes, 3)
        assert len(classes.shared_student) == 2


def test_ends_of_answers_are_one_class_and_specials_of_the_same_text_are_one_each():
    student, teacher = classes_of(
        [b"a"],
        [b"a"],
        ["<eos>", "<think>", "<image>"],
        ["<|end|>", "<|stop|>", "<think>"],
        ends=(["<eos>"], ["<|end|>", "<|stop|>"]),
    )
    assert student == [[0], [1], [2], [3]]
    assert teacher == [[0], [1, 2], [3], []]


def test_padding_and_tokens_without_bytes_are_the_rest():
    student, teacher = classes_of([b"a", None, b""], [None, b"a"], padding=2)
    assert (student, teacher) == ([[0], [1, 2, 3, 4]], [[1], [0, 2, 3]])


def test_shared_tokens_are_those_of_the_same_bytes():
    classes = map_of([b"a", b"ab", b"b"], [b"b", b"abc", b"a"]).token_classes(torch.device("cpu"))
    assert (classes.shared_student.tolist(), classes.shared_teacher.tolist()) == ([0, 2], [2, 0])


def test_what_follows_some_bytes_of_a_teachers_token():
    found = map_of(
        [b"a", b"b", b"bc", b"bcd", b"c"], [b"ab", b"abc", b"a", b"acx", b"abcx", b"b", b"ax"]
    ).continuations(b"a")
    assert found.columns == {b"b": 0, b"bc": 1, b"c": 2}
    teacher = dict(zip(found.teacher.tolist(), found.teacher_columns.tolist(), strict=True))
    assert teacher == {0: 0, 1: 1, 2: -1, 3: 2, 4: 1, 6: -1}  # "a" itself ends there, and nothing is an x
    assert dict(zip(found.student.tolist(), found.student_columns.tolist(), strict=True)) == {1: 0, 2: 1, 3: 1, 4: 2}


def test_what_follows_a_space_that_the_students_text_has_before_a_token():
    found = map_of(
        [b"a", b" ", b" a", b" ab", b" abc", b"  ", b" b"],
        [b"ab", b"a", b"x", b" x", b"ax"],
        ["<eos>", "<mine>", "<tool>"],
        ["<end>", "<its>", "<tool>"],
        ends=(["<eos>"], ["<end>"]),
        padding=1,
    ).continuations(b"")
    assert found.columns == {b" ": 0, b"  ": 1, b" a": 2, b" ab": 3}
    teacher = dict(zip(found.teacher.tolist(), found.teacher_columns.tolist(), strict=True))
    assert teacher == {0: 3, 1: 2, 2: 0, 3: 1, 4: 2, 5: 4, 6: -1, 7: 5, 8: -1}  # all: ends and <tool> have columns
    student = dict(zip(found.student.tolist(), found.student_columns.tolist(), strict=True))
    assert student == {1: 0, 2: 2, 3: 3, 4: 3, 5: 1, 6: 0, 7: 4, 9: 5}
    assert found.num_columns == 6


def test_bytes_of_255_have_a_range_too():
    found = map_of([b"\xff", b"\xffa"], [b"\xff", b"\xff\xff", b"\xff\xffa", b"a"])
    assert sorted(found.continuations(b"\xff").teacher.tolist()) == [0, 1, 2]
    assert found.continuations(b"\xff\xff").columns == {}


@pytest.mark.parametrize("seed", range(5))
def test_positions_are_those_of_the_alignment(seed):
    toy = written(seed, length=40)
    alignment = toy.alignment()
    alignment[3, 0] = -1
    positions = toy.map().positions(alignment, numpy.array(toy.student_row))
    known = alignment[:, 0] >= 0
    assert positions.known.tolist() == known.tolist()
    assert positions.at.tolist() == numpy.where(known, alignment[:, 0], 0).tolist()
    assert positions.last.tolist() == numpy.where(known, alignment[:, 2], 0).tolist()
    assert positions.boundary.tolist() == (known & (alignment[:, 1] == 0)).tolist()
    lengths = [len(text or b"") for text in toy.teacher]
    assert positions.ends.tolist() == [
        bool(fine) and into == lengths[token] for fine, (_, _, _, into, _, token) in zip(known, alignment, strict=True)
    ]


def test_rows_are_cut_where_each_side_has_its_own():
    toy = written(7, length=60)
    positions = toy.map().positions(toy.alignment(), numpy.array(toy.student_row))
    cuts = positions.cuts().nonzero()[:, 0].tolist()
    assert cuts[0] == 0 and cuts[-1] == len(toy.student_row) and len(cuts) > 10
    asked = [positions.cut(start, stop)[1:] for start, stop in itertools.pairwise(cuts)]
    assert [row for first, end in asked for row in range(first, end)] == list(range(len(toy.teacher_row)))


def test_it_is_kept_by_what_the_vocabularies_contain(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path))
    made = map_of([b"a", b"ab"], [b"a", b"abc"]).token_classes(torch.device("cpu"))
    with monkeypatch.context() as patched:
        patched.setattr(VocabularyMap, "_made", None)  # not asked
        kept = map_of([b"a", b"ab"], [b"a", b"abc"]).token_classes(torch.device("cpu"))
        assert all(torch.equal(getattr(made, name), getattr(kept, name)) for name in ("student", "teacher"))
    (file,) = tmp_path.glob("vocabularies/*")
    map_of([b"a", b"abd"], [b"a", b"abc"])
    map_of([b"a", b"ab"], [b"a", b"abc"], padding=1)
    assert len(list(tmp_path.glob("vocabularies/*"))) == 3
    file.write_bytes(file.read_bytes()[:100])
    again = map_of([b"a", b"ab"], [b"a", b"abc"]).token_classes(torch.device("cpu"))
    assert torch.equal(again.student, made.student)


def test_one_that_nobody_has_used_for_a_month_is_deleted_when_another_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path))
    month_ago = (time.time() - 31 * 86_400,) * 2
    for tokens in ([b"a"], [b"b"]):
        map_of(tokens, tokens)
    kept = set(tmp_path.glob("vocabularies/*"))
    left = tmp_path / "vocabularies" / ".of_a_kill.npz.7.partial"
    left.touch()
    for file in (*kept, left):
        os.utime(file, month_ago)
    map_of([b"a"], [b"a"])  # in use again
    map_of([b"c"], [b"c"])
    remaining = set((tmp_path / "vocabularies").iterdir())
    assert len(remaining) == 2 and len(remaining & kept) == 1


def test_a_disk_that_is_full_keeps_nothing_of_it(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(numpy, "savez", full)
    assert classes_of([b"a"], [b"a"]) == [[[0], []], [[0], []]]
    assert list((tmp_path / "vocabularies").iterdir()) == []


def test_it_is_made_where_nothing_can_be_kept(monkeypatch):
    monkeypatch.setattr(vocabulary_map, "cache_folder", lambda: None)
    assert classes_of([b"a"], [b"a"]) == [[[0], []], [[0], []]]
