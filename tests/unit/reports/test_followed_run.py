"""Runs that are looked at while they go on, die, and are resumed."""

import json
import os
import time

import pytest
from made_runs import line, write_run

from distill_tune.reports import run_files
from distill_tune.reports.followed_run import FollowedRuns


@pytest.fixture
def kept(monkeypatch):
    """Whether a process has the folders."""
    answer = [True]
    monkeypatch.setattr(run_files, "is_kept_by_another", lambda folder: answer[0])
    return answer


def append(folder, text):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(text)


def text_of(*lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def last_written(folder, seconds_ago):
    then = time.time() - seconds_ago
    os.utime(folder / "metrics.jsonl", (then, then))


def test_only_what_was_appended_is_read_and_half_a_line_when_it_is_whole(tmp_path):
    run, runs = write_run(tmp_path / "a", 3, finished=False), FollowedRuns([tmp_path])
    (followed,) = runs.read()
    assert list(followed.column("loss")[0]) == [1, 2, 3]
    metrics = run / "metrics.jsonl"
    first = metrics.read_text().partition("\n")[0]
    metrics.write_text(metrics.read_text().replace(first, "x" * len(first)))  # which would be noticed, were it read
    new = text_of(line(4))
    append(run, new[:30])
    runs.read()
    assert followed.last["step"] == 3
    append(run, new[30:] + text_of({"no": "step"}, line(5, loss=None, val_loss=2.5)) + "[1]\nxx\n")
    runs.read()
    assert followed.last["step"] == 5
    assert list(followed.column("loss")[0]) == [1, 2, 3, 4]
    assert [list(values) for values in followed.column("val_loss")] == [[5], [2.5]]
    assert list(followed.column("val_kd_loss")[0]) == []


@pytest.mark.parametrize("steps", [2, 5, 60])
def test_a_file_that_takes_the_place_of_another_is_read_whole(tmp_path, steps):
    """As when a run goes on from a checkpoint: the first lines are the same, those after it are not."""
    run, runs = write_run(tmp_path / "a", 5, finished=False), FollowedRuns([tmp_path])
    (followed,) = runs.read()
    again = [line(1), *(line(step, seconds=0.25) for step in range(2, steps + 1))]
    (run / "new").write_text(text_of(*again))
    os.replace(run / "new", run / "metrics.jsonl")
    runs.read()
    assert list(followed.column("seconds")[0]) == list(range(1, steps + 1))
    assert list(followed.column("seconds")[1])[1:] == [0.25] * (steps - 1)
    (run / "metrics.jsonl").write_text("")
    runs.read()
    assert followed.last == {} and followed.seconds_left is None


def test_runs_that_begin_later_are_first_and_names_tell_them_apart(tmp_path):
    runs = FollowedRuns([tmp_path / "one", tmp_path])
    assert runs.read() == []
    for name, began in (("one/kd", 100), ("two/kd", 300), ("one/other", 200)):
        os.utime(write_run(tmp_path / name, 2) / "config.yaml", (began, began))
        runs.read()
    assert [run.files.name for run in runs.read()] == ["two/kd", "one/other", "one/kd"]


def test_time_left_counts_what_comes_between_steps(tmp_path, kept):
    """50 steps of 0.5 s took 75 s, two thirds of them in validations; what went before the resume does not count."""
    written = 1_800_000_000
    facts = {"total_steps": 200, "resumed_from": 50, "started": "2027-01-15T07:58:45+00:00"}
    run = write_run(tmp_path / "a", 100, facts=facts, finished=False)
    os.utime(run / "metrics.jsonl", (written, written))
    (followed,) = FollowedRuns([run]).read()
    assert followed.seconds_per_step == pytest.approx(75 / 50)
    assert followed.seconds_left == pytest.approx(100 * 75 / 50)
    kept[0] = False
    (followed,) = FollowedRuns([run]).read()
    assert (followed.state, followed.seconds_left) == ("stopped", None)


def test_without_run_json_steps_alone_are_told(tmp_path, kept):
    run = write_run(tmp_path / "a", [line(1, seconds=60.0), line(2), line(3)], finished=False)
    (followed,) = FollowedRuns([run]).read()
    assert followed.seconds_per_step == 0.5  # in the first one much is done once
    assert followed.seconds_left is None


def test_a_healthy_run_alarms_nobody(tmp_path, kept):
    (followed,) = FollowedRuns([write_run(tmp_path / "a", 300)]).read()
    assert followed.alarms == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            lambda step: {"loss": None, "applied": False} if step in (7, 9) else {},
            "2 steps of 300 had a loss or gradient",
        ),
        (lambda step: {"kd_loss": 2.0 + step % 3 / 10}, "The divergence from the teacher does not fall"),
        (lambda step: {"val_loss": 2 + abs(step - 100) / 50} if step % 50 == 0 else {}, "It overfits from step 100 on"),
    ],
)
def test_what_goes_wrong_is_told_while_it_does(tmp_path, kept, changed, told):
    lines = [line(step, **changed(step)) for step in range(1, 301)]
    run, runs = write_run(tmp_path / "a", lines[:5], finished=False), FollowedRuns([tmp_path])
    (followed,) = runs.read()
    assert followed.alarms == []
    append(run, text_of(*lines[5:]))
    runs.read()
    (alarm,) = followed.alarms
    assert alarm.startswith(told) and " To try: " in alarm


def test_a_run_that_writes_no_line_for_long_is_told(tmp_path, kept):
    run = write_run(tmp_path / "a", 30, finished=False)
    for seconds, alarms in ((50, []), (90, ["No new line for 0:01:30; a step takes 0.5 s."])):
        last_written(run, seconds)
        assert FollowedRuns([run]).read()[0].alarms == alarms
    last_written(run, 90)
    kept[0] = False
    assert FollowedRuns([run]).read()[0].alarms == []  # it has stopped, which is told as its state
    (run / "metrics.jsonl").write_text(text_of(*(line(step, seconds=30.0) for step in range(1, 4))))
    kept[0] = True
    last_written(run, 500)
    assert FollowedRuns([run]).read()[0].alarms == []  # 20 steps take longer
