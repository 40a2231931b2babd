"""What two texts share: always true, whole where they differ in few places, at no more than a window at a time."""

import difflib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_tune.alignment import shared_words as module
from distill_tune.alignment.shared_words import shared_words

LINE = ["    ", "x", " ", "=", " ", "[", "0", ",", " 0", ",", " 0", "]", "\n"]


@given(st.lists(st.sampled_from("abc"), max_size=40), st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 9))
def test_they_are_the_same_words_in_the_same_order_as_far_as_these_go(mine, its, window):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "_WINDOW", window)
        found = list(shared_words(mine, its))
    at = its_at = 0
    for start, its_start, size in found:
        assert start >= at and its_start >= its_at
        assert mine[start : start + size] == its[its_start : its_start + size]
        at, its_at = start + size, its_start + size
    if mine == its:
        assert sum(size for *_, size in found) == len(mine)


def changed(words: list[str]) -> list[str]:
    """As a normaliser does it: each e with its accent is one character."""
    return "|".join(words).replace("e|'", "é").split("|")


MANY = [f"w{number}" for number in range(2000)]


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        (["e", "'", *LINE * 2000, "e", "'"], None),  # repeats, and differs at both ends
        (["(", "e", "'", ")", *LINE, ";"] * 500, None),  # and in each line
        (["e", "'", *MANY[:900], *MANY[1000:], "e", "'"], ["é", *MANY, "é"]),  # one has more
        (["e", "'", *MANY[:50], *LINE * 99, *MANY[50:], "e", "'"], ["é", *MANY, "é"]),  # which repeats
    ],
)
def test_all_that_is_the_same_is_found_with_no_more_than_a_window_for_each_that_there_is(mine, its, monkeypatch):
    its = its or changed(mine)
    compared, compare = [], difflib.SequenceMatcher

    def counting(junk, *words, autojunk):
        compared.append(max(map(len, words)))
        assert compared[-1] <= 128
        return compare(junk, *words, autojunk=autojunk)

    monkeypatch.setattr(module.difflib, "SequenceMatcher", counting)
    shared = sum(size for *_, size in shared_words(mine, its))
    assert shared == min(len(mine) - 2 * mine.count("e"), len(its) - its.count("é"))
    assert len(compared) <= 2 + 2 * len(mine) // 128


def test_of_two_texts_that_share_nothing_nothing_is_found():
    assert [size for *_, size in shared_words(MANY, LINE * 300) if size] == []
    assert [size for *_, size in shared_words(MANY, []) if size] == []
