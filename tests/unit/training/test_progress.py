"""The progress of a run in terminals of several widths, and in a log."""

import io
import re

import pytest
from rich.console import Console

from distill_tune.training import Progress, progress

LINE = {
    **{"loss": 0.601, "kd_loss": 0.544, "ce_loss": 0.659, "lr": 1e-3},
    **{"tokens_per_second": 5328.0, "peak_memory_bytes": 0.52 * 2**30},
}


@pytest.fixture
def shown(monkeypatch):
    """What is shown of steps that each last so many seconds."""

    def show(steps: range, total: int, seconds: float, width: int | None = None, done: int = 0) -> str:
        now, output = [1000.0], io.StringIO()
        terminal = Console(file=output, force_terminal=width is not None, width=width, color_system=None)
        monkeypatch.setattr(progress, "Console", lambda: terminal)
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        with Progress(total, done) as bar:
            for step in steps:
                now[0] += seconds
                bar.update(LINE | {"step": step})
        return output.getvalue()

    return show


def last_drawn(output: str) -> str:
    return re.split(r"\r|\x1b\[[0-9;?]*[A-Za-z]|\n", output.rstrip("\x1b[?25h\n"))[-1].rstrip()


@pytest.mark.parametrize(
    "width, expected",
    [
        (60, "step 114/3000 loss 0.601  kd 0.544  0.52 GiB  1:12:09 left"),
        (80, "step 114/3000 loss 0.601  kd 0.544  ce 0.659  0.52 GiB  1:12:09 left"),
        (90, "step 114/3000 loss 0.601  kd 0.544  ce 0.659  5,328 tokens/s  0.52 GiB  1:12:09 left"),
    ],
)
def test_in_a_narrow_terminal_steps_memory_and_time_left_stay(shown, width, expected):
    assert last_drawn(shown(range(1, 115), 3000, seconds=1.5, width=width)) == expected


def test_a_wide_terminal_has_everything(shown):
    line = last_drawn(shown(range(1, 115), 3000, seconds=1.5, width=140))
    assert line.startswith("step 114/3000 ") and "lr 1.0e-03  5,328 tokens/s  0.52 GiB  1:12:09 left" in line


def test_of_answers_that_were_written_length_and_cut_share_are_told(shown, monkeypatch):
    monkeypatch.setitem(LINE, "rollout_length", 84.25)
    monkeypatch.setitem(LINE, "rollout_cut", 0.125)
    assert "ce 0.659  84 tokens/answer, 12% cut  " in shown(range(1, 3), 3, seconds=1)
    narrow = last_drawn(shown(range(1, 115), 3000, seconds=1.5, width=80))
    assert narrow == "step 114/3000 loss 0.601  84 tokens/answer, 12% cut  0.52 GiB  1:12:09 left"


@pytest.mark.parametrize("width", [None, 100])
def test_the_time_left_is_told_of_steps_of_minutes_and_of_a_resumed_run(shown, width):
    output = shown(range(901, 904), 1000, seconds=95, width=width, done=900)
    assert "2:33:35 left" in (output.splitlines() if width is None else [last_drawn(output)])[-1]


@pytest.mark.parametrize("seconds, lines", [(0.01, 3 + 1 + 1), (2, 3 + 1 + 33 + 1), (200, 1000)])
def test_a_log_has_the_first_steps_the_last_and_at_most_a_line_a_minute(shown, seconds, lines):
    told = shown(range(1, 1001), 1000, seconds).splitlines()
    assert len(told) == lines
    assert (told[3] == "from here on a line comes at most once a minute; metrics.jsonl has every step") == (
        seconds < 60
    )
    assert [line.split("  ")[0] for line in (told[0], told[2], told[-1])] == [
        "step 1/1000",
        "step 3/1000",
        "step 1000/1000",
    ]
    assert told[1].endswith(f"{progress.duration(2 * seconds)} elapsed  {progress.duration(998 * seconds)} left")
