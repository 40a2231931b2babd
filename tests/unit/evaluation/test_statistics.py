import itertools
import math
import time
from fractions import Fraction

import numpy as np
import pytest

from distill_tune.evaluation import statistics


def documents(generator, num, mean=2.0, spread=0.5):
    """Sums of nll and tokens of documents whose tokens depend on one another: each has a level of its own."""
    tokens = np.ceil(generator.lognormal(4, 1, num))
    level = generator.lognormal(math.log(mean) - spread**2 / 2, spread, num)
    return np.stack([level * tokens, tokens], axis=1)


def test_documents_drawn_anew_are_as_all_ways_to_draw_them():
    columns = np.array([[1.0, 2.0], [5.0, 3.0], [9.0, 10.0]])
    every = np.array([columns[list(draw)].sum(0) for draw in itertools.product(range(3), repeat=3)])
    exact = every[:, 0] / every[:, 1]
    sums = statistics.bootstrap_sums(columns, resamples=50_000)
    found = sums[:, 0] / sums[:, 1]
    for bound in np.unique(exact)[:-1] + 1e-9:
        assert np.mean(found <= bound) == pytest.approx(np.mean(exact <= bound), abs=0.01)


def test_each_draw_has_as_many_documents_and_the_same_for_all_columns(monkeypatch):
    monkeypatch.setattr(statistics, "_DRAWS", 1000)  # several pieces
    nll = np.random.default_rng(0).random(70)
    sums = statistics.bootstrap_sums(np.stack([np.ones(70), nll, nll], axis=1), resamples=333)
    assert sums.shape == (333, 3)
    assert (sums[:, 0] == 70).all() and len(np.unique(sums[:, 1])) > 300
    np.testing.assert_allclose(sums[:, 1], sums[:, 2], rtol=1e-12)


def test_documents_are_exchanged_in_all_ways_where_they_are_few():
    first, second = np.random.default_rng(1).random((2, 4, 2))
    ours, theirs, is_all = statistics.exchanged_sums(first, second)
    assert is_all
    expected = [
        sum((b if swapped else a)[0] for swapped, a, b in zip(ways, first, second, strict=True))
        for ways in itertools.product([False, True], repeat=4)
    ]
    np.testing.assert_allclose(np.sort(ours[:, 0]), np.sort(expected))
    np.testing.assert_allclose(ours + theirs, np.broadcast_to((first + second).sum(0), ours.shape))


def test_p_of_many_documents_is_near_that_of_all_ways():
    difference = np.random.default_rng(2).normal(0.4, 1, (12, 1))
    first, second = difference, np.zeros_like(difference)
    found = []
    for resamples in (2**12, 2**12 - 1):
        ours, theirs, is_all = statistics.exchanged_sums(first, second, resamples)
        assert is_all == (resamples == 2**12)
        found.append(statistics.permutation_p((float(difference.sum()), 0.0), ours[:, 0], theirs[:, 0], is_all))
    signed = [abs(np.dot(signs, difference[:, 0])) for signs in itertools.product([-1, 1], repeat=12)]
    assert found[0] == np.mean(np.array(signed) >= abs(difference.sum()) - 1e-12)
    assert found[1] == pytest.approx(found[0], abs=0.03)


@pytest.mark.parametrize(("first_alone", "second_alone"), [(0, 0), (0, 5), (3, 3), (1, 9), (7, 2)])
def test_with_a_token_a_document_the_permutation_test_is_mcnemars(first_alone, second_alone):
    right = np.array([[1, 0]] * first_alone + [[0, 1]] * second_alone + [[1, 1], [0, 0]], dtype=float)
    ours, theirs, is_all = statistics.exchanged_sums(right[:, :1], right[:, 1:])
    p = statistics.permutation_p(tuple(right.sum(0)), ours[:, 0], theirs[:, 0], is_all)
    assert p == pytest.approx(statistics.exact_mcnemar(first_alone, second_alone), abs=1e-12)


def test_mcnemar_is_the_binomial_of_a_fair_coin():
    assert statistics.exact_mcnemar(1, 9) == float(Fraction(2 * (1 + 10), 2**10))
    assert statistics.exact_mcnemar(9, 1) == statistics.exact_mcnemar(1, 9)
    assert statistics.exact_mcnemar(4, 4) == 1.0
    assert 0 <= statistics.exact_mcnemar(3000, 4000) < 1e-30


def test_tokens_as_trials_find_differences_by_chance_and_documents_do_not():
    generator, of_tokens, of_documents, runs = np.random.default_rng(3), 0, 0, 200
    for _ in range(runs):
        # Two models that are alike; in each document some is liked better by chance, with all of its tokens.
        liking = generator.beta(0.5, 0.5, 30)
        first_alone = generator.binomial(20, liking).astype(float)
        second_alone = 20 - first_alone
        of_tokens += statistics.exact_mcnemar(int(first_alone.sum()), int(second_alone.sum())) < 0.05
        ours, theirs, is_all = statistics.exchanged_sums(first_alone[:, None], second_alone[:, None], 1000)
        found = float(first_alone.sum()), float(second_alone.sum())
        of_documents += statistics.permutation_p(found, ours[:, 0], theirs[:, 0], is_all) < 0.05
    assert of_tokens > 0.4 * runs
    assert of_documents < 0.1 * runs


@pytest.mark.parametrize("num", [8, 40])
def test_intervals_have_the_true_figure_in_them_as_often_as_they_say(num):
    generator, covered, runs = np.random.default_rng(4), 0, 400
    for _ in range(runs):
        columns = documents(generator, num)
        sums = statistics.bootstrap_sums(columns, 1000, seed=int(generator.integers(2**32)))
        low, high = statistics.interval(sums[:, 0] / sums[:, 1], num)
        covered += low <= 2.0 <= high
    assert 0.88 <= covered / runs <= 0.98


def test_there_is_no_interval_of_one_document_or_of_nothing():
    assert statistics.interval(np.ones(10), 1) is None
    assert statistics.interval(np.full(10, np.nan), 5) is None


@pytest.mark.parametrize(("freedom", "quantile"), [(1, -12.7062), (4, -2.77645), (29, -2.04523), (9999, -1.96020)])
def test_quantiles_of_students_t_are_those_of_the_tables(freedom, quantile):
    assert statistics.student_t_quantile(0.025, freedom) == pytest.approx(quantile, rel=1e-5)
    assert statistics.student_t_quantile(0.975, freedom) == pytest.approx(-quantile, rel=1e-5)


@pytest.mark.parametrize(("right", "num"), [(0, 20), (7, 20), (20, 20), (1, 1)])
def test_wilsons_bounds_are_the_shares_that_the_found_one_would_just_be_unlikely_with(right, num):
    low, high = statistics.wilson_interval(right, num)
    for bound in (low, high):
        if 0 < bound < 1:
            assert abs(right / num - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / num))
    assert 0 <= low <= right / num <= high <= 1 and low < high


def test_holm_is_as_r_has_it():
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def test_the_effect_of_documents_that_count_alike_is_cohens_d():
    first, second = np.random.default_rng(5).random((2, 25))
    ones = np.ones(25)
    moved = first - second
    found = statistics.effect_size((first, ones), (second, ones))
    assert found == pytest.approx(moved.mean() / moved.std(ddof=1))
    assert statistics.effect_size((first, ones), (first - 0.5, ones)) is None


def test_ten_thousand_draws_of_three_hundred_documents_take_well_under_a_second():
    columns = np.random.default_rng(6).random((300, 8))
    started = time.perf_counter()
    statistics.bootstrap_sums(columns)
    statistics.exchanged_sums(columns[:, :4], columns[:, 4:])
    assert time.perf_counter() - started < 1.5  # 0.2 on an idle machine
