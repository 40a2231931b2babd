"""Signals of a run, and those that torchrun is asked to pass on to ranks."""

import os
import pty
import signal
from pathlib import Path

import pytest

from distill_tune.cli import run
from distill_tune.cli.caller import left_as_it_was
from distill_tune.training import StopSignals


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN], ids=["terminal", "nohup"])
def hangup(request):
    """What SIGHUP did before the run."""
    before = signal.signal(signal.SIGHUP, request.param)
    yield request.param
    signal.signal(signal.SIGHUP, before)


def test_under_nohup_a_closed_terminal_ends_nothing(hangup, monkeypatch):
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.number == (0 if hangup == signal.SIG_IGN else signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == hangup

    asked = []
    monkeypatch.setattr("torch.distributed.run.run", asked.append)
    with left_as_it_was():
        run._launch(run.torchrun_options(["--nproc_per_node", "2", "recipe.py"]), Path("recipe.py"), "tiny", [])
    (options,) = asked
    assert ("SIGHUP" in options.signals_to_handle.split(",")) == (hangup == signal.SIG_DFL)
    assert "SIGTERM" in options.signals_to_handle.split(",")


def test_what_a_run_says_when_it_is_told_to_stop_has_a_line_of_its_own():
    leader, terminal = pty.openpty()
    kept = os.dup(2)
    os.dup2(terminal, 2)
    try:
        with StopSignals():
            os.write(2, b"step 1/3^C")  # the progress bar, and what a terminal shows of Ctrl-C
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.dup2(kept, 2)
    shown = b""
    while not shown.endswith(b"now\r\n"):
        shown += os.read(leader, 1000)
    assert shown.decode().splitlines() == [
        "step 1/3^C",
        "distill-tune: SIGINT: finishing the step, then a checkpoint; once more ends now",
    ]
    for descriptor in (leader, terminal, kept):
        os.close(descriptor)


@pytest.mark.parametrize(("done", "when"), [(7, "after step 7"), (0, "before the first step was through")])
def test_a_stopped_run_says_so_below_the_progress_bar(done, when, capsys):
    with pytest.raises(SystemExit) as ended, StopSignals() as stop:
        try:
            stop.leave(done, signal.SIGTERM)
        finally:  # as the progress bar ends
            print("bar")
    assert ended.value.code == 143
    assert capsys.readouterr().out == f"bar\nstopped {when} by SIGTERM; resume=auto goes on\n"
