"""Commands in processes of their own, which are told to stop, or are killed."""

import fcntl
import os
import signal
import time

from distill_tune.sweep.running import TrialProcess, last_line


def ended(process):
    while (status := process.poll()) is None:
        time.sleep(0.02)
    return status


def test_commands_follow_one_another_and_the_first_that_fails_is_the_last(tmp_path):
    process = TrialProcess(tmp_path / "trial_1", [["cat", "tiny"], ["cat", "nothing_like_it"], ["ls"]], {})
    assert ended(process) == 2
    log = (tmp_path / "trial_1" / "log.txt").read_text()
    assert [line for line in log.splitlines() if line.startswith("$ ")] == [
        "$ distill-tune cat tiny",
        "$ distill-tune cat nothing_like_it",
    ]
    assert "\nkd_ratio: 0.9\n" in log
    assert process.said.startswith("nothing_like_it: no such recipe or config")


def test_a_process_that_is_killed_is_told_with_the_likeliest_reason(tmp_path):
    process = TrialProcess(tmp_path, [["ls"]], {})
    process.poll()
    os.kill(process._process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL
    assert process.said == "ended by SIGKILL; most likely this machine's memory ran out"


def test_nothing_follows_once_it_is_told_to_stop(tmp_path):
    process = TrialProcess(tmp_path, [["ls"], ["ls"]], {})
    process.poll()
    process.stop(signal.SIGTERM)
    assert ended(process) == -signal.SIGTERM
    assert (tmp_path / "log.txt").read_text().count("$ distill-tune ls") == 1


def test_a_run_that_a_killed_sweep_has_left_is_waited_for(tmp_path):
    process = TrialProcess(tmp_path, [["ls"]], {})
    with (tmp_path / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert process.poll() is None and process.is_waiting
    assert not (tmp_path / "log.txt").exists()
    assert ended(process) == 0


def test_the_last_line_that_says_something_is_told(tmp_path):
    log = tmp_path / "log.txt"
    assert last_line(log) == ""
    log.write_text("step 1\ndistill-tune: loss is not finite\n\n")
    assert last_line(log) == "loss is not finite"
    log.write_text("x" * 500)
    assert len(last_line(log)) == 200
