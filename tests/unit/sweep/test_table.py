"""What is told of a sweep: rows, and whether the best is better."""

import io
import math

import pytest
from rich.console import Console

from distill_tune.sweep.objective import OBJECTIVES
from distill_tune.sweep.results import results_of
from distill_tune.sweep.table import difference, label, last_lines, markdown, sentences, terminal_table
from distill_tune.sweep.values import read_axes

BITS = OBJECTIVES["bits_per_byte"]


def told(trials, overrides=("kd_ratio=0.1,0.5,0.9",)):
    return " ".join(sentences(results_of(trials, BITS), BITS, read_axes(overrides)[1]))


def test_of_several_seeds_mean_and_standard_deviation_are_told(finished):
    trials = finished({"kd_ratio=0.1": [1.0, 1.2, 1.4], "kd_ratio=0.5": [2.0]})
    rows = markdown(trials, results_of(trials, BITS), BITS).splitlines()
    assert rows == [
        "| trial | kd_ratio | bits/byte | seeds | time |",
        "| ---: | ---: | ---: | ---: | ---: |",
        "| 1 | 0.1 | 1.2000 ± 0.2000 | 3 | 60 s |",
        "| 4 | 0.5 | 2.0000 | 1 | 60 s |",
    ]


def test_the_interval_of_a_difference_is_that_of_students_t_with_pooled_variance(finished):
    trials = finished({"a=1": [1.0, 1.1, 1.2], "a=2": [1.5, 1.3, 1.7], "a=3": [9.0]})
    first, second, third = results = results_of(trials, BITS)
    found = difference(first, second, results, BITS)
    variance = (2 * 0.01 + 2 * 0.04) / 4
    half = 2.776445 * math.sqrt(variance * (1 / 3 + 1 / 3))  # t of 0.975 at 4 degrees of freedom
    assert (found.by, found.low, found.high) == pytest.approx((0.4, 0.4 - half, 0.4 + half), rel=1e-5)
    of_one = difference(second, third, results, BITS)
    assert of_one.high - of_one.by == pytest.approx(half / math.sqrt(2 / 3) * math.sqrt(4 / 3), rel=1e-5)


def test_words_say_whether_the_best_is_clearly_better(finished):
    assert "not clearly better than the next, kd_ratio=0.5: by 0.1000" in told(
        finished({"kd_ratio=0.1": [1.0, 1.2, 1.4], "kd_ratio=0.5": [1.1, 1.3, 1.5]})
    )


def test_words_say_what_is_clear(finished):
    said = told(finished({"kd_ratio=0.5": [1.0, 1.01, 1.02], "kd_ratio=0.9": [1.5, 1.51, 1.52]}))
    assert said.startswith("Best: kd_ratio=0.5, 1.0100 bits per byte, mean of 3 seeds (trial_1).")
    assert "It is clearly better than the next, kd_ratio=0.9: by 0.5000" in said
    assert "kd_ratio=0.5 is the smallest of its values" in said  # that have come to their end


def test_with_one_seed_each_the_best_may_be_the_luckiest_and_an_end_is_told(finished):
    finished({"kd_ratio=0.1": [2.0]})
    said = told(finished({"kd_ratio=0.9": [1.0], "kd_ratio=0.5": [1.5]}))
    assert "the best may be the luckiest" in said
    assert "kd_ratio=0.9 is the largest of its values: what lies beyond was not tried." in said


def test_a_value_between_others_is_no_end(finished):
    assert "of its values" not in told(finished({"kd_ratio=0.1": [2.0], "kd_ratio=0.5": [1.0], "kd_ratio=0.9": [1.5]}))


def test_of_accuracy_the_highest_is_the_best(finished, sweeping):
    from distill_tune.sweep.objective import find_objective

    accuracy = find_objective("arc", ["arc"])
    for number, value in enumerate((0.3, 0.5, 0.4)):
        trial = sweeping.trials.add({"a": str(number)}, 0)
        trial.state, trial.figures = "finished", {"arc": value}
    assert [result.mean for result in results_of(sweeping.trials, accuracy)] == [0.5, 0.4, 0.3]


def test_what_failed_has_its_row_and_its_last_line(finished):
    trials = finished({"kd_loss=distill_tune.losses.ReverseKL": [1.0]}, perplexity=20.0)
    trial = trials.add({"kd_loss": "{_component_: distill_tune.losses.JS, beta: 0.5}"}, 0)
    trial.state, trial.said = "failed", "the device's memory ran out"
    rows = markdown(trials, results_of(trials, BITS), BITS).splitlines()[2:]
    assert rows == [
        "| 1 | ReverseKL | 1.0000 | 60 s | 20.00 |",
        "| 2 | {_component_: distill_tun... | failed | 0 s |  |",
    ]
    assert last_lines(trials, BITS)[0].endswith("beta: 0.5}'): the device's memory ran out")


def test_a_trial_is_labelled_by_what_it_varies(sweeping):
    settings = {"optimizer.lr": "1e-3", "kd_loss": "distill_tune.losses.ReverseKL", "a.lr": "1", "b": "x" * 40}
    trial = sweeping.trials.add(settings, 0)
    assert label(trial) == f"trial_1 optimizer.lr=1e-3 kd_loss=ReverseKL a.lr=1 b={'x' * 25}..."


def test_a_narrow_terminal_loses_what_is_beside_the_objective(finished):
    trials = finished({"kd_ratio=0.1": [1.0]}, perplexity=20.0, kl=0.5, agreement=0.5)
    results = results_of(trials, BITS)

    def shown(width):
        console = Console(file=io.StringIO(), width=width)
        console.print(terminal_table(trials, results, BITS, console))
        return console.file.getvalue()

    assert "agreement" in shown(80) and "perplexity" in shown(80)
    assert "agreement" not in shown(50) and "bits/byte" in shown(50)
    trials.find({"kd_ratio": "0.1"}, 0).seconds = 23 * 60
    shown_at = [width for width in range(40, 80) if "agreem" in shown(width)]
    assert all("agreement" in shown(width) and "23 min" in shown(width) for width in shown_at)
