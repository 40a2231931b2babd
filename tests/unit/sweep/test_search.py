"""Optuna's proposals and early ends, on made figures."""

import functools
import math
import sys
import types

import pytest

from distill_tune.errors import UserError
from distill_tune.sweep.objective import OBJECTIVES
from distill_tune.sweep.schedule import next_searched
from distill_tune.sweep.trials import Trials
from distill_tune.sweep.values import read_axes

optuna = pytest.importorskip("optuna")
from distill_tune.sweep.search import Search  # noqa: E402

_, AXES = read_axes(["optimizer.lr=1e-5..1e-1", "kd_ratio=0.1,0.5,0.9"])


def search(axes=AXES, prunes=True):
    return Search(axes, OBJECTIVES["bits_per_byte"], 0, prunes)


def cost(trial):
    """Lowest at a learning rate of 1e-3, and with the largest ratio."""
    return abs(math.log10(float(trial.settings["optimizer.lr"])) + 3) - float(trial.settings["kd_ratio"])


def go(sweeping, most, stop=None, by=None):
    by, schedule = by or search(), sweeping.schedule()
    propose = functools.partial(next_searched, by, most, sweeping.trials, sweeping.objective, schedule.tried)
    schedule.run(propose, stop or types.SimpleNamespace(number=0), by)


def test_it_finds_what_is_better_and_goes_on_as_if_it_had_never_stopped(sweeping, tmp_path):
    sweeping.value = cost
    go(sweeping, 30)
    assert len(sweeping.trials) == 30
    best = min(sweeping.trials, key=cost)
    assert best.settings["kd_ratio"] == "0.9"
    assert 3e-4 < float(best.settings["optimizer.lr"]) < 3e-3
    late = [cost(trial) for trial in sweeping.trials][15:]
    assert sum(late) / len(late) < sum(map(cost, [*sweeping.trials][:10])) / 10

    other = type(sweeping)(tmp_path / "other")
    other.folder.mkdir()
    other.value = cost
    for most in (4, 17, 30):
        other = other.again()
        go(other, most)
    assert [trial.settings for trial in other.trials] == [trial.settings for trial in sweeping.trials]


def test_the_trial_at_which_it_was_killed_is_run_again_and_not_another_in_its_place(sweeping):
    sweeping.value = cost
    go(sweeping, 3)
    [*sweeping.trials][-1].state = "running"
    sweeping.trials.write()
    go(other := sweeping.again(), 3)
    assert other.started == [(3, None)]
    assert [trial.state for trial in Trials(sweeping.folder)] == ["finished"] * 3


def test_what_is_behind_the_median_at_the_same_step_is_ended_early(sweeping):
    sweeping.value = cost
    sweeping.made = lambda trial: (4, 0, [5.0, 4.0, 3.0] if trial.number <= 5 else [5.0, 4.5, 3.0])
    go(sweeping, 6)
    last = [*Trials(sweeping.folder)][-1]
    assert (last.state, last.validations) == ("pruned", {1: 5.0, 2: 4.5})
    assert sweeping.said[-1] == "trial_6: ended early: at step 2 it is behind the others"
    go(other := sweeping.again(), 6)
    assert other.started == []  # what was ended early is through


def test_nothing_is_ended_early_where_losses_cannot_be_compared(sweeping):
    sweeping.value = cost
    sweeping.made = lambda trial: (4, 0, [5.0, 4.0] if trial.number <= 5 else [9.0, 9.0])
    go(sweeping, 6, by=search(prunes=False))
    assert {trial.state for trial in sweeping.trials} == {"finished"}


def test_a_search_without_its_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--search: needs the package optuna; pip install 'distill-tune\[sweep\]'"):
        search()


def test_it_ends_when_all_combinations_were_tried(sweeping):
    go(sweeping, 10, by=search(AXES[1:]))
    assert sorted(trial.settings["kd_ratio"] for trial in sweeping.trials) == ["0.1", "0.5", "0.9"]


def test_trials_of_other_seeds_and_values_tell_it_nothing(sweeping):
    trials = sweeping.trials
    for settings, seed in (
        ({"optimizer.lr": "1e-3", "kd_ratio": "0.5"}, 0),
        ({"optimizer.lr": "1e-3", "kd_ratio": "0.50"}, 1),
        ({"optimizer.lr": "1.0", "kd_ratio": "0.5"}, 0),
        ({"optimizer.lr": "1e-3", "kd_ratio": "0.7"}, 0),
        ({"optimizer.lr": "1e-3"}, 0),
    ):
        trials.add(settings, seed)
    assert [trial.number for trial in search().known(trials)] == [1]
