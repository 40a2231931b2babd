"""`distill-tune watch` in a log and in a terminal."""

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from made_runs import write_run

from distill_tune.cli.main import main

FACTS = {"recipe": "kd_single_device", "device": "cpu", "total_steps": 100}


def test_without_a_terminal_it_prints_how_runs_stand_and_ends(tmp_path, capsys):
    os.utime(write_run(tmp_path / "old", 100, facts=FACTS) / "config.yaml", (1, 1))
    write_run(tmp_path / "new", 30, facts=FACTS, finished=False)
    for arguments in ([str(tmp_path)], [str(tmp_path / "old"), str(tmp_path), "--once"]):
        main(["watch", *arguments])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("new: stopped, step 30/100, last step 0:00:0")
        assert lines[2] == "old: finished, step 100/100"


@pytest.mark.parametrize(
    ("folder", "told"),
    [
        ("nothing", "nothing: no such folder; name a run's output_dir, or a folder of runs"),
        (".", "no run has written there; name a run's output_dir, or a folder of runs"),
    ],
)
def test_a_folder_without_runs_is_told(tmp_path, capsys, folder, told):
    with pytest.raises(SystemExit, match="2"):
        main(["watch", str(tmp_path / folder)])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan"])
def test_seconds_that_cannot_be_are_refused(tmp_path, capsys, seconds):
    with pytest.raises(SystemExit, match="2"):
        main(["watch", str(tmp_path), "--every", seconds])
    assert "--every" in capsys.readouterr().err


def test_it_starts_without_torch(tmp_path):
    code = "import sys; from distill_tune.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "watch", str(write_run(tmp_path / "a", 3))]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown.startswith("a: finished, step 3\n") and shown.endswith("\nFalse\n")


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_in_a_terminal_it_follows_runs_until_it_is_ended_and_leaves_the_terminal_as_it_was(tmp_path, ended_by):
    process, terminal = pty.fork()
    if process == 0:
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "20"}
        command = [sys.executable, "-m", "distill_tune", "watch", str(tmp_path), "--every", "0.05"]
        os.execve(sys.executable, command, environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 60, 0, 0))
    shown = read_until(terminal, "no run yet")
    assert "\x1b[?1049h" in shown  # the other screen, on which nothing is scrolled away
    write_run(tmp_path / "begun", 7, facts=FACTS, finished=False)
    assert re.search(r"[⠁-⣿]", read_until(terminal, "step 7/100", "kd_loss"))
    write_run(tmp_path / "another", 1, facts=FACTS)
    read_until(terminal, "another", "finished")
    os.kill(process, ended_by)
    rest = read_until(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == (0 if ended_by == signal.SIGINT else 143)
    assert rest.endswith("\x1b[?1049l") and "Traceback" not in rest


def read_until(terminal, *texts):
    """What comes until all the texts have, or, without any, until the end."""
    shown, end = "", time.monotonic() + 60
    while time.monotonic() < end and not (texts and all(text in shown for text in texts)):
        try:
            shown += os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # it has ended
            break
    assert all(text in shown for text in texts), shown
    return shown
