"""What is seen of runs in terminals of several sizes, and in a log."""

import os
import time

import pytest
from made_runs import line, write_run

from distill_tune.reports import run_files
from distill_tune.reports.followed_run import FollowedRuns
from distill_tune.reports.watched_runs import plain, screen

VALIDATED = [line(step, **({"val_loss": 3.0, "val_kd_loss": 2.5} if step % 20 == 0 else {})) for step in range(1, 101)]
FACTS = {"recipe": "kd_single_device", "device": "cpu", "total_steps": 400}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Of each folder whether it goes on."""

    def make(*, number=1, lines=VALIDATED, facts=FACTS, **state):
        monkeypatch.setattr(run_files, "is_kept_by_another", lambda folder: state.get("running", False))
        for at in range(number):
            run = write_run(tmp_path / f"run_{at}", lines, facts=facts, finished=state.get("finished", False))
            os.utime(run / "config.yaml", (1000 - at, 1000 - at))
            os.utime(run / "metrics.jsonl", (time.time() - 3, time.time() - 3))
        return FollowedRuns([tmp_path]).read()

    return make


def seen(runs, width, height):
    lines = screen(runs, width, height)
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines)
    return [line.plain.rstrip() for line in lines]


def test_one_run_in_a_terminal_of_80_columns(runs):
    lines = seen(runs(running=True), 80, 24)
    assert lines[0] == "run_0  running  kd_single_device  cpu"
    assert lines[1].startswith("step 100/400  ━━━━") and lines[1].endswith(" 25%  0:02:30 left  last step 0:00:03 ago")
    assert lines[2] == "loss 1.833  kd 1.667  ce 3.333  lr 1.8e-03  4,000 tokens/s  1.00 GiB"
    assert lines[4] == "validation at step 100: loss 3.000  kd 2.500"
    assert lines[5].split() == ["loss", "•", "validation", "kd_loss", "•", "validation", "ce_loss"]
    assert len(lines) == 24 and lines[-1].split() == ["1", "100"] * 3


def test_in_a_narrow_terminal_curves_lie_one_below_another(runs):
    lines = seen(runs(running=True), 40, 24)
    assert lines[0] == "run_0  running  kd_single_device  cpu"
    assert [line for line in lines if "loss •" in line or line == "ce_loss"] == [
        "loss • validation",
        "kd_loss • validation",
        "ce_loss",
    ]
    assert lines[-1].split() == ["1", "100"]


def test_several_runs_have_a_line_each_and_the_newest_their_curves(runs):
    found = runs(number=9)
    lines = seen(found, 80, 24)
    assert lines[0] == "run_0  stopped  step 100/400  loss 1.833  kd 1.667  ce 3.333  val 3.000"
    assert lines[7] == "and 2 more, which began earlier"
    assert lines[8].startswith("loss • validation")
    narrow = seen(found, 40, 12)
    assert narrow[0] == "run_0  stopped  step 100/400  loss 1.833"
    assert narrow[3] == "and 6 more, which began earlier"


def test_parts_without_weight_have_no_curve(runs):
    lines = seen(runs(lines=[line(step, kd_loss=0.0, loss=2.0, ce_loss=2.0) for step in range(1, 9)]), 80, 24)
    assert any(text == "loss" for text in lines) and not any("_loss" in text for text in lines)


@pytest.mark.parametrize("number", [1, 2, 9])
@pytest.mark.parametrize("lines", [VALIDATED, [], [line(step, loss=None, applied=False) for step in range(1, 4)]])
def test_nothing_is_wider_or_longer_than_the_terminal(runs, number, lines):
    found = runs(number=number, lines=lines, running=True)
    for size in [(80, 24), (40, 24), (120, 40), (20, 6), (10, 3), (300, 80)]:
        seen(found, *size)


def test_a_log_has_plain_lines(runs):
    (run,) = runs(running=True)
    assert plain(run).splitlines() == [
        "run_0: running, step 100/400, 0:02:30 left, last step 0:00:03 ago",
        "  loss 1.833  kd 1.667  ce 3.333  lr 1.8e-03  4,000 tokens/s  1.00 GiB",
        "  validation at step 100: loss 3.000  kd 2.500",
    ]


def test_a_run_without_a_step_or_with_a_loss_that_is_not_finite_is_shown(runs, tmp_path):
    (run,) = runs(lines=[], facts=None)
    assert plain(run).startswith("run_0: stopped, no step yet, begun ")
    assert seen([run], 80, 24)[1].startswith("no step yet  begun ")
    with (tmp_path / "run_0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "loss": null, "kd_loss": null, "ce_loss": 2, "grad_norm": null, "applied": false}\n')
    (run,) = FollowedRuns([tmp_path]).read()
    _, figures, alarm = plain(run).splitlines()
    assert figures == "  loss nan  kd nan  ce 2.000"
    assert alarm.startswith("  alarm: 1 step of 1 had a loss or gradient that is not finite")
    assert "grad norm" not in "".join(seen([run], 80, 24))


def test_a_last_validation_that_is_not_finite_is_told_and_no_earlier_one(runs):
    lines = [*VALIDATED, line(101, val_loss=None, val_kd_loss=None)]
    found = runs(number=2, lines=lines)
    assert plain(found[0]).splitlines()[2] == "  validation at step 101: loss nan  kd nan"
    assert seen(found, 120, 24)[0].endswith("  val nan")
