"""Commands in processes of their own, which are told to stop, or are killed."""

import os
import signal
import subprocess
import sys
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


_ENDS_SLOWLY = """
import signal, sys, time
from pathlib import Path

from distill_tune import config
from distill_tune.disk import keep_to_oneself

def stop(number, frame):
    (folder / "stopped").touch()
    time.sleep(1.5)
    sys.exit()

folder = Path(sys.argv[0]).parent
keep_to_oneself(folder)
signal.signal(signal.SIGTERM, stop)
(folder / "begun").touch()
time.sleep(100)
config.run_recipe(None)
"""
_SWEEP = """
import sys, time
from pathlib import Path

from distill_tune.sweep.running import TrialProcess

folder = Path(sys.argv[1])
TrialProcess(folder, [["run", str(folder / "slow.py"), "--config", "tiny"]], {}).poll()
time.sleep(100)
"""


def until(file):
    give_up = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < give_up, file
        time.sleep(0.02)


def test_a_trial_ends_with_its_sweep_however_that_ends_and_its_next_process_waits_for_it(tmp_path):
    (tmp_path / "slow.py").write_text(_ENDS_SLOWLY)
    sweep = subprocess.Popen([sys.executable, "-c", _SWEEP, str(tmp_path)])
    until(tmp_path / "begun")
    sweep.kill()
    sweep.wait()
    process = TrialProcess(tmp_path, [["ls"]], {})
    assert process.poll() is None and process.is_waiting
    assert ended(process) == 0
    assert (tmp_path / "stopped").exists()


def test_the_last_line_that_says_something_is_told(tmp_path):
    log = tmp_path / "log.txt"
    assert last_line(log) == ""
    log.write_text("step 1\ndistill-tune: loss is not finite\n\n")
    assert last_line(log) == "loss is not finite"
    log.write_text("x" * 500)
    assert len(last_line(log)) == 200
