import numpy as np
import pytest

from distill_tune.evaluation import significance
from distill_tune.evaluation.significance import intervals, pairs

NUM = 60


def columns(seed=0, num=NUM, **moved):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 50, num).astype(float)
    made = {
        "nll": tokens * generator.uniform(1, 3, num),
        "tokens": tokens,
        "bytes": 4 * tokens,
        "forward_kl": tokens * generator.uniform(0.2, 0.6, num),
        "agreed": np.floor(tokens * generator.uniform(0.3, 0.9, num)),
        "compared": tokens,
        "exact_match": (generator.random(num) < 0.5).astype(float),
        "answered": np.ones(num),
    }
    for name, change in moved.items():
        made[name] = change(made)
    return made | {"text_nll": made["nll"]}


def pair(models, measure):
    return next(row for row in pairs(models) if row["measure"] == measure)


def test_a_figure_is_a_sum_by_a_sum_and_lies_in_its_interval():
    of = columns()
    bounds = intervals({"student": of})["student"]
    low, high = bounds["supervised.perplexity"]
    assert low < np.exp(of["nll"].sum() / of["tokens"].sum()) < high
    low, high = bounds["supervised.bits_per_byte"]
    assert low < of["nll"].sum() / of["bytes"].sum() / np.log(2) < high
    low, high = bounds["answers.exact_match"]
    assert 0 < low < of["exact_match"].mean() < high < 1
    assert "answers.rouge_l" not in bounds and "all.perplexity" not in bounds


def test_a_long_document_weighs_as_much_as_it_has_tokens():
    of = {"nll": np.array([1000.0, 1.0, 1.0, 1.0]), "tokens": np.array([100.0, 1.0, 1.0, 1.0])}
    other = of | {"nll": np.array([500.0, 2.0, 2.0, 2.0])}
    figure = significance.MEASURES["supervised.perplexity"].of(of["nll"].sum(), of["tokens"].sum())
    assert figure == pytest.approx(np.exp(1003 / 103))
    both = {name: one | {"bytes": one["tokens"], "text_nll": one["nll"]} for name, one in (("a", of), ("b", other))}
    row = pair(both, "supervised.bits_per_byte")
    assert row["difference"] == pytest.approx((1003 - 506) / 103 / np.log(2))  # a mean of means has 3.4


def test_what_is_better_is_told_whichever_comes_first():
    worse, better = columns(), columns(nll=lambda of: of["nll"] - 0.3 * of["tokens"])
    first = pair({"after": better, "before": worse}, "supervised.bits_per_byte")
    second = pair({"before": worse, "after": better}, "supervised.bits_per_byte")
    assert first["difference"] == pytest.approx(-0.3 / 4 / np.log(2))
    assert second["difference"] == -first["difference"] and second["p"] == first["p"]
    assert second["interval"] == pytest.approx([-bound for bound in first["interval"]][::-1])
    assert first["words"] == second["words"]
    assert first["words"].startswith(
        "after is better than before by 0.1082 bits per byte (95%: 0.1082 to 0.1082), p < 0.001"
    )
    assert "p < 0.001" in first["words"]


def test_more_agreement_is_nearer_to_the_teacher_and_more_kl_is_not():
    base = columns()
    near = columns(
        agreed=lambda of: np.minimum(of["agreed"] + 4, of["tokens"]), forward_kl=lambda of: of["forward_kl"] / 2
    )
    models = {"base": base, "near": near}
    agreement = pair(models, "to_teacher.agreement")
    assert agreement["words"].startswith("near is nearer to the teacher than base by ")
    assert "points of agreement" in agreement["words"] and agreement["difference"] < 0
    assert pair(models, "to_teacher.forward_kl.mean")["words"].startswith("near is nearer to the teacher than base by ")


def test_what_may_be_luck_is_called_not_significant():
    of = columns()
    other = columns(nll=lambda one: one["nll"] + np.random.default_rng(9).normal(0, 5, NUM))
    row = pair({"a": of, "b": other}, "supervised.bits_per_byte")
    assert row["p"] > 0.05 and row["interval"][0] < 0 < row["interval"][1]
    assert row["words"].startswith("not significant: a and b differ by ")


def test_models_that_are_the_same_have_no_difference():
    row = pair({"a": columns(), "b": columns()}, "supervised.bits_per_byte")
    assert (row["difference"], row["p"], row["effect"]) == (0.0, 1.0, None)
    assert row["words"] == "no difference: a and b, in bits per byte"


def test_on_five_documents_nothing_is_significant_however_large_it_is():
    worse, better = columns(num=5), columns(num=5, nll=lambda of: of["nll"] / 2)
    row = pair({"a": worse, "b": better}, "supervised.bits_per_byte")
    assert row["p"] == 2 / 2**5
    assert row["words"].startswith("not significant, and never on 5 documents: a and b differ by ")


@pytest.mark.parametrize("relative", [1e-5, 1e-7, 1e-9])
def test_a_difference_near_what_float64_rounds_away_is_as_likely_as_all_ways_to_exchange_have_it(relative):
    generator = np.random.default_rng(0)
    for _ in range(40):
        change = 1 + relative * generator.uniform(0.5, 1.5, 4)
        of = columns(seed=int(generator.integers(2**32)), num=4)
        worse = of | {"text_nll": of["text_nll"] * change}  # of each document, so two ways of 16 are as uneven
        row = pair({"a": of, "b": worse}, "supervised.bits_per_byte")
        assert row["p"] == 2 / 2**4
        assert row["words"].startswith("not significant, and never on 4 documents: ")


def test_a_difference_that_is_one_of_many_pairs_has_to_be_larger():
    generator = np.random.default_rng(11)
    models = {"base": columns()}
    for name in "abcd":
        noise = generator.normal(0, 5, NUM)
        models[name] = columns(nll=lambda of, noise=noise: of["nll"] + noise - noise.mean())
    noise = generator.normal(0, 1, NUM)
    noise *= 1 / noise.std(ddof=1)
    models["a"] = columns(nll=lambda of: of["nll"] + noise - noise.mean() + 2.3 / np.sqrt(NUM))  # p of some 0.025
    rows = [row for row in pairs(models) if row["measure"] == "supervised.bits_per_byte"]
    row = rows[0]
    assert len(rows) == 10 and row["p"] < 0.05 < row["p_holm"]
    assert row["words"].startswith("not significant among so many pairs: base and a differ by ")
    assert "(Holm, 10 pairs), alone p = 0.02" in row["words"]


def test_right_and_wrong_answers_are_compared_by_mcnemar():
    first, second = np.zeros(20), np.zeros(20)
    first[:10], second[8:11] = 1, 1
    row = pair(
        {"a": columns(num=20) | {"exact_match": first}, "b": columns(num=20) | {"exact_match": second}},
        "answers.exact_match",
    )
    assert row["test"] == "exact McNemar"
    assert row["p"] == 2 * (1 + 9) / 2**9  # 8 documents against 1
    assert row["difference"] == pytest.approx(7 / 20)


def test_documents_that_one_model_could_not_answer_are_neither_right_nor_wrong():
    every, some = np.ones(20), np.repeat([1.0, 0.0], [12, 8])
    long = {"exact_match": every, "rouge_l": every, "answered": every}
    short = {"exact_match": some, "rouge_l": some, "answered": some}  # right wherever it has answered
    rows = pairs({"long": long, "short": short})
    assert [row["documents"] for row in rows] == [12, 12] and [row["p"] for row in rows] == [1.0, 1.0]
    assert rows[0]["words"] == "no difference: long and short, in points of exact match"
    others = {"exact_match": 1 - some, "rouge_l": 1 - some, "answered": 1 - some}
    assert pairs({"short": short, "others": others}) == []  # no document that both have answered


def test_a_measure_that_one_of_both_lacks_is_left_out():
    without = {name: column for name, column in columns().items() if name not in ("forward_kl", "agreed")}
    measures = {row["measure"] for row in pairs({"a": columns(), "teacher": without})}
    assert measures == {"supervised.bits_per_byte", "answers.exact_match"}


def test_documents_in_which_nothing_was_counted_do_not_count():
    of = columns()
    longer = {name: np.concatenate([column, np.zeros(200)]) for name, column in of.items()}
    other = columns(nll=lambda one: one["nll"] * 1.1)
    longer_other = {name: np.concatenate([column, np.zeros(200)]) for name, column in other.items()}
    rows, again = pairs({"a": of, "b": other}), pairs({"a": longer, "b": longer_other})
    assert rows[0]["documents"] == again[0]["documents"] == NUM
    assert rows == again


def test_a_bound_that_is_about_nothing_has_no_sign():
    found = {"first": "a", "second": "b", "difference": 0.018, "interval": (-0.0001, 0.036), "documents": 20}
    measure = significance.Measure("x", "y", unit="points", shown=100, more_is_better=True)
    words = significance.in_words(found | {"p": 0.5, "p_holm": 0.5, "effect": None}, measure)
    assert words == "not significant: a and b differ by 1.8 points (95%: 0.0 to 3.6), p = 0.5"
