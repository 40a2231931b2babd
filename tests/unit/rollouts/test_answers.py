"""What is told of a step's answers from their tokens alone."""

import pytest

from distill_tune.errors import UserError
from distill_tune.generation import Completion, Request
from distill_tune.rollouts.answer_watch import AnswerWatch
from distill_tune.rollouts.answers import before_tokens, is_cut, is_empty, is_repeating, measures_of
from distill_tune.rollouts.writers import written_by_all_ranks

END = 2


def answer(*tokens, finish_reason="stop"):
    return Completion(tokens, (0.0,) * len(tokens), finish_reason)


def test_shares_of_cut_empty_and_repeating_answers():
    answers = [
        answer(5, 6, 7, END),
        answer(END),
        answer(*range(10, 40), finish_reason="length"),
        answer(*[5, 6, 7] * 12, finish_reason="length"),
    ]
    assert measures_of(answers, num_tokens=90, seconds=2.0) == {
        "rollouts": 4,
        "rollout_length": (4 + 1 + 30 + 36) / 4,
        "rollout_cut": 0.5,
        "rollout_empty": 0.25,
        "rollout_repeating": 0.25,
        "rollout_seconds": 2.0,
        "rollout_tokens_per_second": 45.0,
    }
    assert measures_of([], num_tokens=0, seconds=2.0) == {}


def test_one_token_that_is_no_end_is_an_answer():
    assert not is_empty(answer(5, finish_reason="length"))
    assert is_empty(answer())


@pytest.mark.parametrize(
    ("tokens", "repeats"), [([7] * 23, False), ([7] * 24, True), ([*range(30), *range(20)], False)]
)
def test_an_answer_repeats_itself_where_most_of_it_was_there_before(tokens, repeats):
    assert is_repeating(answer(*tokens)) == repeats


def test_an_answer_that_was_cut_since_it_goes_in_circles_is_cut_and_repeats_itself():
    circles = answer(5, 6, 5, 6, finish_reason="repetition")
    assert is_cut(circles)
    assert is_repeating(circles)


def line(length=20.0, cut=0.1, repeating=0.0):
    return {"rollout_length": length, "rollout_cut": cut, "rollout_repeating": repeating}


BEGINNING = [line()] * 10


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (line(length=40.0, cut=0.6), "answers run away: "),
        (line(repeating=0.3), "answers repeat themselves: "),
        (line(length=40.0), None),  # longer, and they end
        (line(), None),
    ],
)
def test_an_alarm_is_told_once_when_answers_run_away_or_repeat_themselves(then, told):
    watch = AnswerWatch(BEGINNING)
    alarms = [alarm for alarm in (watch.alarm(then) for _ in range(30)) if alarm]
    assert [alarm.startswith(told) for alarm in alarms] == ([True] if told else [])


def test_answers_that_are_all_cut_from_the_start_are_told_of():
    watch = AnswerWatch()
    alarms = [watch.alarm(line(cut=1.0)) for _ in range(12)]
    assert [bool(alarm) for alarm in alarms] == [False] * 9 + [True] + [False] * 2
    assert "where finish_reason in rollouts.jsonl is length" in alarms[9]  # other bounds may have cut them


def test_a_watch_that_is_resumed_goes_on_where_it_was():
    lines = [*BEGINNING, *[line(repeating=0.05 * step) for step in range(12)]]
    whole = AnswerWatch()
    alarms = [whole.alarm(one) for one in lines]
    resumed = AnswerWatch([{"step": 1}, *lines[:13]])
    assert [resumed.alarm(one) for one in lines[13:]] == alarms[13:]
    assert any(alarms[13:])


def test_an_answer_is_cut_before_a_token_that_is_another_to_the_teacher():
    whole = answer(5, 6, 7, END)
    assert before_tokens(whole, {8: "'<a>' is '<b>'"}) == whole
    cut = before_tokens(whole, {7, END})
    assert cut == Completion((5, 6), (0.0, 0.0), "other_token") and is_cut(cut)


def test_answers_of_logits_that_are_no_numbers_end_the_run():
    class Broken:
        def generate(self, requests):
            return [Completion((5,), (float("nan"),), "length") for _ in requests]

    with pytest.raises(UserError, match=r"rollouts: .*logits are no numbers \(NaN\)"):
        written_by_all_ranks(Broken(), [Request([5], 0)], [0])
