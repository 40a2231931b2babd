import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_tune.evaluation.answer_scores import longest_common_subsequence, rouge_l, scored


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abcd"), max_size=9))
def test_the_longest_common_subsequence_is_that_of_the_definition(first, second):
    @functools.cache
    def longest(i, j):
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    assert longest_common_subsequence(first, second) == longest(0, 0)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        # as the package rouge-score 0.1.2 gives them
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        ("Don't stop_now, it's 42!", "don t stop now its 42", 10 / 13),
        ("one two three", "one two three four five six", 2 / 3),
        ("a", "b", 0.0),
        ("", "something", 0.0),
        ("?!", "...", 0.0),
    ],
)
def test_rouge_l_is_what_rouge_score_gives(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score, abs=1e-12)


def test_writing_without_spaces_is_compared_by_its_characters():
    assert rouge_l("今天天气很好。", "今天天气不好") == pytest.approx(2 * 5 / 12)
    assert rouge_l("猫がすき", "犬がすき") == pytest.approx(3 / 4)
    assert rouge_l("用 json 模块", "json 模块") == pytest.approx(2 * 3 / 7)


def test_an_answer_is_exactly_the_reference_but_for_case_spaces_and_full_stops():
    assert scored(" The  answer.\n", "the answer").exact_match == 1
    assert scored(r"It is \boxed{42}, so", "42").exact_match == 1
    assert scored("the answer!", "the answer").exact_match == 0
    assert scored("the answer!", "the answer").rouge_l == 1
