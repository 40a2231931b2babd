"""Which trial runs when, and how each ends; with runs that are made up."""

import functools
import signal
import types

import pytest

from distill_tune.sweep.follow import MetricsFollower
from distill_tune.sweep.results import to_repeat
from distill_tune.sweep.schedule import next_planned
from distill_tune.sweep.trials import Trials

POINTS = [({"kd_ratio": text}, 0) for text in ("0.1", "0.5", "0.9")]


def asked(number=0):
    return types.SimpleNamespace(number=number)


def go(sweeping, points=POINTS, stop=None, **arguments):
    schedule = sweeping.schedule(**arguments)
    propose = functools.partial(next_planned, points, sweeping.trials, sweeping.objective, schedule.tried)
    schedule.run(propose, stop or asked())
    return schedule


def states(sweeping):
    return [trial.state for trial in Trials(sweeping.folder)]


def test_each_trial_is_run_once_and_the_same_command_runs_none_again(sweeping):
    go(sweeping, num_runs=3)
    assert sweeping.started == [(1, None), (2, None), (3, None)]
    assert states(sweeping) == ["finished"] * 3
    assert sweeping.said[:2] == [
        "trial_1: kd_ratio=0.1 seed=0",
        "trial_1: 1.0000 bits per byte, in 7 s; 2 runs left, some 14 s",
    ]
    go(other := sweeping.again())
    assert other.started == []


def test_what_a_search_ended_early_is_not_left(sweeping):
    sweeping.trials.add(*POINTS[0]).state = "pruned"
    go(sweeping, POINTS[1:2], num_runs=2)
    assert sweeping.said[-1] == "trial_2: 1.0000 bits per byte, in 7 s"


def test_more_values_run_what_is_new_however_the_old_ones_are_written(sweeping):
    go(sweeping)
    go(other := sweeping.again(), [({"kd_ratio": text}, 0) for text in ("0.10", "0.3", "0.5")])
    assert other.started == [(4, None)]
    assert other.trials.find({"kd_ratio": "0.3"}, 0).number == 4


def test_a_trial_that_fails_ends_alone_with_its_last_line_and_is_tried_again_last(sweeping):
    sweeping.made = lambda trial: (1, 1 if trial.settings["kd_ratio"] == "0.1" else 0, [])
    go(sweeping)
    assert states(sweeping) == ["failed", "finished", "finished"]
    assert sweeping.said[1] == "trial_1: failed: out of memory"
    other = sweeping.again()
    other.made = lambda trial: (1, 0, [])
    go(other, [*POINTS, ({"kd_ratio": "0.7"}, 0)])
    assert other.started == [(4, None), (1, None)]
    assert states(sweeping) == ["finished"] * 4


def test_a_run_that_leaves_no_figure_has_failed(sweeping):
    sweeping.value = lambda trial: 1.0
    sweeping.objective = types.SimpleNamespace(name="other", unit="", larger_is_better=False)
    schedule = sweeping.schedule()
    schedule._measure = lambda trial: {}
    schedule.run(
        functools.partial(next_planned, POINTS[:1], sweeping.trials, sweeping.objective, schedule.tried), asked()
    )
    assert sweeping.said[-1] == "trial_1: failed: has no other, or none that is finite"


def test_a_trial_whose_figures_cannot_be_read_has_failed_and_the_others_go_on(sweeping):
    figures = {"0.1": {}, "0.5": {"bits_per_byte": 1.0}, "0.9": {"bits_per_byte": 2.0}}
    sweeping.value = lambda trial: figures[trial.settings["kd_ratio"]]["bits_per_byte"]
    go(sweeping)
    assert states(sweeping) == ["failed", "finished", "finished"]
    assert sweeping.said[1] == "trial_1: failed: its figures cannot be read: KeyError: 'bits_per_byte'"


def test_a_signal_stops_what_runs_and_starts_nothing_more_and_the_same_command_goes_on_with_it_first(sweeping):
    stop = asked()
    sweeping.made = lambda trial: (3, 0, [])
    said, sweeping.said = sweeping.said, types.SimpleNamespace()
    lines = said

    def say(line):
        lines.append(line)
        if line.startswith("trial_2: kd_ratio"):
            stop.number = signal.SIGINT

    sweeping.said.append = say
    go(sweeping, stop=stop)
    assert sweeping.runs[2].stopped_by == signal.SIGINT
    assert states(sweeping) == ["finished", "stopped"]
    go(other := sweeping.again(), [POINTS[2], *POINTS])
    assert other.started == [(2, None), (3, None)]
    assert other.trials.find(*POINTS[1]).seconds == 14  # both times


def test_after_a_kill_the_trial_that_was_under_way_is_the_first(sweeping):
    sweeping.made = lambda trial: (10**9, 0, [])
    schedule = sweeping.schedule()
    for point in POINTS[:2]:
        sweeping.trials.add(*point)
    sweeping.trials.find(*POINTS[0]).state = "failed"
    schedule._fill(functools.partial(next_planned, POINTS, sweeping.trials, sweeping.objective, set()))
    assert states(sweeping) == ["failed", "running"]  # on the disk before the trial begins; here the sweep is killed
    sweeping.made = lambda trial: (1, 0, [])
    go(other := sweeping.again())
    assert [number for number, _ in other.started] == [2, 3, 1]


def test_an_error_kills_what_runs(sweeping):
    sweeping.made = lambda trial: (10**9, 0, [])
    schedule = sweeping.schedule(devices=("0", "1"))
    proposed = iter([sweeping.trials.add(*POINTS[0])])
    with pytest.raises(StopIteration):
        schedule.run(lambda: next(proposed), asked())
    assert sweeping.runs[1].is_killed


def test_devices_each_run_one_trial_at_a_time(sweeping):
    sweeping.made = lambda trial: ({1: 3, 2: 1, 3: 1}[trial.number], 0, [])
    go(sweeping, devices=("0", "1"))
    assert sweeping.started == [(1, "0"), (2, "1"), (3, "1")]


def test_the_best_are_repeated_until_none_is_better_by_its_mean(sweeping):
    means = {"0.1": [1.0, 3.0, 3.0], "0.5": [1.1, 1.1, 1.1], "0.9": [1.2, 1.0, 1.0]}
    sweeping.value = lambda trial: means[trial.settings["kd_ratio"]][trial.seed]
    go(sweeping)
    rounds = []
    while points := to_repeat(sweeping.trials, sweeping.objective, 1, [1, 2]):
        go(sweeping, points)
        rounds.append(points[0][0]["kd_ratio"])
    assert rounds == ["0.1", "0.5"]  # the first looked best by luck; 0.9 might be as good, but nothing says so
    assert not to_repeat(sweeping.trials, sweeping.objective, 0, [1, 2])


def test_lines_of_metrics_are_read_once_and_from_the_start_again_when_a_run_is_resumed(tmp_path):
    file = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(file)
    assert follower.new_lines() == []
    file.write_text('{"step": 1}\n{"ste')
    assert follower.new_lines() == [{"step": 1}]
    assert follower.new_lines() == []
    with file.open("a") as stream:
        stream.write('p": 2}\nnonsense\n{"step": 3}\n')
    assert follower.new_lines() == [{"step": 2}, {"step": 3}]
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n')
    (tmp_path / "new").replace(file)
    assert [line["step"] for line in follower.new_lines()] == [1, 2, 3, 4]
