"""Output that nobody reads, or that a disk has no room for."""

import os
import subprocess
import sys

import pytest

from distill_tune.streams import going_on_without_output


def unread_pipe() -> int:
    reads, writes = os.pipe()
    os.close(reads)
    return writes


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


OUTPUTS = pytest.mark.parametrize("lost", [unread_pipe, full_disk])


@OUTPUTS
@pytest.mark.parametrize("buffering", [-1, 1])
def test_a_run_goes_on_without_its_output_and_says_so_once(lost, buffering, monkeypatch, capsys):
    with os.fdopen(lost(), "w", buffering) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with going_on_without_output():
            for number in range(1000):
                print(f"step {number} of a run whose lines fill a buffer")
        assert sys.stdout is stream
        print("and after it")
    told = capsys.readouterr().err
    assert told.count("the run goes on without it") == told.count("\n") == 1


def test_a_run_goes_on_without_stderr_too(monkeypatch):
    with os.fdopen(unread_pipe(), "w") as one, os.fdopen(unread_pipe(), "w") as other:
        monkeypatch.setattr(sys, "stdout", one)
        monkeypatch.setattr(sys, "stderr", other)
        with going_on_without_output():
            print("a line", flush=True)
            print("a line", file=sys.stderr, flush=True)


@OUTPUTS
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_output_is_not_read_ends_quietly_and_a_full_disk_is_told(lost, unbuffered):
    descriptor = lost()
    done = subprocess.run(
        [sys.executable, "-m", "distill_tune", "ls"],
        stdout=descriptor,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    os.close(descriptor)
    if lost is unread_pipe:
        assert (done.returncode, done.stderr) == (141, "")
    else:
        assert (done.returncode, done.stderr) == (1, "distill-tune: stdout: No space left on device\n")
