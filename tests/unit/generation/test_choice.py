"""Which answers are kept: filters, scores, the best of some, and what is told of the others."""

import json
import random
import tracemalloc
import unicodedata

import pytest

from distill_tune import generation
from distill_tune.errors import UserError
from distill_tune.generation.answers import Answer, Prompt, Question, Sample, answer_of, row_of
from distill_tune.generation.choice import Choice
from distill_tune.generation.thinking import split_thinking
from distill_tune.generation.words import words

QUESTION = Question(
    0,
    "rows.json, row 1",
    {"reference": "6", "id": 7},
    ({"role": "user", "content": "How many?"},),
    None,
    ("id",),
    {"teacher": Prompt((1, 2))},
)


def sample(text, number=0, log_prob=-4.0, tokens=4, finish_reason="stop"):
    return Sample(f"key{number}", "teacher", number, 0, finish_reason, list(range(tokens)), log_prob, text)


def answer(text, **more):
    turns = ({"role": "user", "content": more.pop("asked", "How?")},)
    made = {"tokens": [1, 2], "log_prob": -1.0, "finish_reason": "stop", "model": "a", "sample": 0, "thinking": ""}
    return Answer(row=more.pop("row", {}), turns=turns, text=text, **made | more)


WORDS = [f"word{number}" for number in range(200)]


def said(seed, count=60):
    return random.Random(seed).choices(WORDS, k=count)


@pytest.mark.parametrize(
    ("text", "is_open", "thought", "rest"),
    [
        ("Paris.", False, "", "Paris."),
        ("<think>\nThe capital.\n</think>\n\nParis.", False, "The capital.", "Paris."),
        ("The capital.\n</think>\n\nParis.", False, "The capital.", "Paris."),
        ("The capital.\n</think>\n\nParis.", True, "The capital.", "Paris."),
        ("<think>The cap", False, "The cap", ""),
        ("The cap", True, "The cap", ""),
        ("So: <think>a</think>b", False, "a", "So: b"),
        ("a <b> </think> <think>", False, "a <b>", " <think>"),
    ],
)
def test_a_thought_is_told_from_the_answer(text, is_open, thought, rest):
    assert split_thinking(text, is_open) == (thought, rest)


def test_a_thought_is_kept_or_dropped_or_has_a_field_of_its_own():
    thinks = sample("<think>\nHalf a dozen.\n</think>\n\n6")
    rows = {}
    for thinking in ("keep", "drop", "field"):
        made = answer_of(QUESTION, thinks, thinking)
        rows[thinking] = row_of(QUESTION, thinks, made, None)["messages"][-1]
    assert rows["keep"] == {"role": "assistant", "content": "<think>\nHalf a dozen.\n</think>\n\n6"}
    assert rows["drop"] == {"role": "assistant", "content": "6"}
    assert rows["field"] == {"role": "assistant", "content": "6", "reasoning_content": "Half a dozen."}


def test_a_row_has_the_prompts_turns_what_nobody_has_read_of_its_row_and_how_it_was_made():
    one = sample("6", number=2, finish_reason="length")
    row = row_of(QUESTION, one, answer_of(QUESTION, one, "keep"), 1.0)
    assert row == {
        "messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "6"}],
        "id": 7,
        "finish_reason": "length",
        "generated": {
            "model": "teacher",
            "seed": 0,
            "sample": 2,
            "tokens": [0, 1, 2, 3],
            "log_prob": -4.0,
            "score": 1.0,
            "key": "key2",
        },
    }


def test_filters_see_what_they_are_for():
    assert generation.Finished()(answer("a")) and not generation.Finished()(answer("a", finish_reason="length"))
    length = generation.Length(least=2, most=3)
    assert [length(answer("a", tokens=[0] * n)) for n in (1, 2, 3, 4)] == [False, True, True, False]
    repeats = generation.Repetition()
    assert repeats(answer("It is the sum of the two numbers, and of the others."))
    assert not repeats(answer("and so on " * 10)) and not repeats(answer("你好吗" * 10)) and repeats(answer("yes"))
    circles = [5, 6, 7] * 8
    assert not repeats(answer("|", tokens=[1, 2, *circles])) and repeats(answer("|", tokens=[1, 2, *circles[3:]]))
    latin = generation.Scripts(["latin"])
    assert latin(answer("It is 6, à peu près.")) and not latin(answer("It is 六个,大概是这样的"))
    assert generation.Scripts(["CJK", "Latin"])(answer("六 six"))
    assert not generation.Scripts("CJK")(answer("Привет мир"))


def test_duplicates_are_found_among_thousands_and_others_are_not():
    near = generation.Duplicates(similarity=0.8)
    texts = [said(seed) for seed in range(1500)]
    assert all(near(answer(" ".join(of_text))) for of_text in texts)
    for of_text in texts[::50]:
        changed = [*of_text]
        changed[7] = "another"  # three of 58 runs of three words are others: 55 of 61 in common
        assert not near(answer(" ".join(changed).upper() + "!"))
        assert near(answer(" ".join(of_text[::2] + changed[:20])))
    exact = generation.Duplicates(similarity=1.0)
    assert [exact(answer(text)) for text in ("It is 6.", "it is 6", "It is 7.", "yes", "Yes!", "你好")] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]


def test_duplicates_keep_some_bytes_of_each_run_of_words():
    near, texts = generation.Duplicates(), [" ".join(said(seed, 300)) for seed in range(60)]
    near(answer(texts.pop()))  # and all that is made once
    tracemalloc.start()
    assert all(near(answer(text)) for text in texts)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept / len(texts) < 24 * 300


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It's 3.5 x_1", ["it", "s", "3", "5", "x", "1"]),
        (unicodedata.normalize("NFD", "Café à Zürich"), ["café", "à", "zürich"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("می\u200cخواهم بروم", ["می\u200cخواهم", "بروم"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("你好, world", ["你", "好", "world"]),
        ("한국어", ["한", "국", "어"]),
    ],
)
def test_a_word_is_whole_with_its_marks_and_a_character_where_no_spaces_stand_between(text, wanted):
    assert words(text) == wanted


def test_answers_that_share_eight_words_with_a_held_out_row_are_left_out(tmp_path):
    held_out = " ".join(said(0, 20))
    rows = [{"messages": [{"role": "user", "content": held_out}], "id": 3}, {"text": "a short one"}]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clean = generation.Decontaminated(str(tmp_path / "held_out.jsonl"))
    part = " ".join(held_out.split()[5:13])
    assert not clean(answer(f"it says {part.upper()}, so")) and not clean(answer("yes", asked=part))
    assert not clean(answer("yes", thinking=part))
    assert clean(answer(" ".join(part.split()[:7]))) and clean(answer("a short one"))


@pytest.mark.parametrize(
    ("by", "reference", "text", "right"),
    [
        ("exact", "Paris", " paris. ", True),
        ("exact", "Paris", "It is Paris", False),
        ("exact", "Paris", r"So \boxed{Paris}", True),
        ("numeric", "6", "3 and 3 are 6", True),
        ("numeric", 6, "6.0", True),
        ("numeric", "so 2 * 3\n#### 1,206", "there are 1206.", True),
        ("numeric", "0.5", r"\boxed{1/2} of 7", True),
        ("numeric", "6", "seven", False),
        ("numeric", "6", "6, or rather 7", False),
        ("numeric", "-6", "6", False),
        ("numeric", "6", "7/0", False),
        ("numeric", "4", r"\boxed{\frac{3}{4}}", False),
        ("numeric", "1/4", r"\boxed{\frac{1}{4}}", True),
        ("numeric", r"\frac{1}{4}", r"$\dfrac34$", False),
        ("numeric", "1e-5", "It is 2e-5", False),
        ("numeric", "1500", "1.5e3", True),
        ("numeric", "10^6", "2^6", False),
        ("numeric", "10^{6}", "1,000,000", True),
        ("numeric", "5", "The answer is \u22125", False),
        ("numeric", "-5", "The answer is \u22125", True),
        ("numeric", "10", "so x is in 5-10", True),
        ("numeric", "4", "9" * 5000, False),
        ("numeric", "4", "9e999999999", False),
        ("numeric", "4", "9^99999999", False),
        ("numeric", "4", "0^-1", False),
    ],
)
def test_an_answer_is_held_against_the_right_one(by, reference, text, right):
    score = generation.Match(by=by)
    assert score(answer(text, row={"reference": reference})) == float(right)


@pytest.mark.parametrize("row", [{"other": 6}, {"reference": "none"}, {"reference": "9" * 5000}])
def test_a_row_without_a_right_answer_is_told_before_there_is_one(row):
    generation.Match(by="numeric").check({"reference": 6})
    with pytest.raises(ValueError, match=r"no column reference|the column reference has no number"):
        generation.Match(by="numeric").check(row)


def test_math_verify_is_asked_where_it_is_there_and_named_where_not(monkeypatch):
    import importlib.util

    if importlib.util.find_spec("math_verify") is None:
        with pytest.raises(UserError, match=r"by=math: .*needs? .*math_verify|by=math: math_verify"):
            generation.Match(by="math")
    else:
        assert generation.Match(by="math")(answer(r"$\frac{2}{4}$", row={"reference": "$1/2$"})) == 1.0


def test_the_best_of_those_that_filters_leave_is_kept_and_the_table_says_what_took_the_others():
    choice = Choice({"Finished": generation.Finished(), "Duplicates": generation.Duplicates()}, generation.Likelihood())
    samples = [
        sample("the likeliest, but cut", 0, log_prob=-1.0, finish_reason="length"),
        sample("good enough", 1, log_prob=-4.0),
        sample("not so good", 2, log_prob=-8.0),
        sample("  ", 3, log_prob=-0.1),
    ]
    chosen = list(choice.of(QUESTION, samples))
    assert [one.taken_by for one in chosen] == ["Finished", "", "not the best", "empty"]
    assert chosen[1].score == -1.0
    again = list(choice.of(QUESTION, [sample("Good enough!", 0)]))  # another prompt's
    assert [one.taken_by for one in again] == ["Duplicates"]
    *lines, told = [line.split() for line in choice.told().splitlines()]
    assert told[:2] == ["cut,", "not"]
    assert lines == [
        ["1", "of", "5", "answers", "kept"],
        ["empty", "1", "20.0%"],
        ["Finished", "1", "20.0%"],
        ["Duplicates", "1", "20.0%"],
        ["not", "the", "best", "1", "20.0%"],
    ]


def test_it_is_told_how_many_answers_were_cut_whether_a_filter_takes_them_or_not():
    choice = Choice()
    cut = [sample("a", 0, finish_reason="length"), sample("b", 1, finish_reason="repetition"), sample("c", 2)]
    assert all(not one.taken_by for one in choice.of(QUESTION, cut))
    assert choice.told() == (
        "3 of 3 answers kept\n"
        "cut, not ended by the model: 1 by max_new_tokens or the model's length, 1 by max_repetitions, of 3 answers"
    )
    whole = Choice()
    list(whole.of(QUESTION, [sample("c")]))
    assert whole.told() == "1 of 1 answer kept"


def test_an_answer_below_the_least_score_is_wrong_and_several_may_be_kept():
    choice = Choice(score=generation.Match(by="numeric"), min_score=1, best_per_prompt=2)
    samples = [sample(text, number) for number, text in enumerate(("6", "7", "six: 6", "it is 6"))]
    assert [one.taken_by for one in choice.of(QUESTION, samples)] == ["", "below min_score", "", "not the best"]
    assert [choice.is_right(QUESTION, one) for one in samples] == [True, False, True, True]


def test_an_answer_that_is_empty_or_that_a_filter_takes_is_asked_again():
    choice = Choice({"Length": generation.Length(most=4)}, generation.Likelihood(), min_score=-2.0)
    assert choice.is_right(QUESTION, sample("6"))
    assert not choice.is_right(QUESTION, sample("six", tokens=5))
    assert not choice.is_right(QUESTION, sample("", tokens=0, log_prob=None))  # which has no likelihood


def test_a_score_or_filter_that_fails_is_told_with_the_row():
    with pytest.raises(UserError, match=r"score: rows\.json, row 1: the row has no column answer; it has reference"):
        list(Choice(score=generation.Match("answer")).of(QUESTION, [sample("6")]))
    with pytest.raises(UserError, match=r"filter mine: rows\.json, row 1: 'other'"):
        list(Choice({"mine": lambda answer: answer.row["other"]}).of(QUESTION, [sample("6")]))
    with pytest.raises(UserError, match="teacher tells no log-probabilities"):
        list(Choice(score=generation.Likelihood()).of(QUESTION, [sample("6", log_prob=None)]))
