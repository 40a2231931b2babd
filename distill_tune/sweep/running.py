"""A trial in processes of its own: its training, then its evaluation. What ends them ends this trial alone."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from distill_tune.disk import is_kept_by_another
from distill_tune.launch import SWEEP

_LOG, _LONGEST = "log.txt", 200  # characters of the last line


class TrialProcess:
    """Runs commands of `distill-tune` one after the other, with what they print in log.txt of the trial's folder.

    They have a session of their own: a terminal's Ctrl-C reaches the sweep alone, which tells them. Where the sweep is
    killed, they are told to stop, too.

    Args:
        folder: of the trial; while another process has it, as that of a killed sweep until its step has ended, nothing
            begins.
        commands: arguments of `distill-tune`.
        environment: in addition to this process' own.
    """

    def __init__(self, folder: Path, commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
        self._folder, self._commands, self._environment = folder, list(commands), environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        self._stopped_by = 0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def is_waiting(self) -> bool:
        """For the process that has the folder."""
        return self._process is None and is_kept_by_another(self._folder)

    def poll(self) -> int | None:
        """Begin the next command where it is time to; how it ended once the last, or one that failed, has; else None.

        As a shell tells it, but for a signal, which is negative.
        """
        if self._process is None:
            if self._stopped_by:
                return -self._stopped_by
            if self.is_waiting:
                return None
            self._begin()
        assert self._process is not None
        status = self._process.poll()
        if status == 0 and self._commands:
            if self._stopped_by:
                return -self._stopped_by
            self._begin()
            return None
        return status

    def stop(self, number: int) -> None:
        """Have it end after its step, with a checkpoint; at once at the second call."""
        self._stopped_by = number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)  # torchrun tells its ranks; twice would end them at once

    def end(self) -> None:
        """Kill it, and wait until it is gone."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def said(self) -> str:
        """Why it ended: its last line."""
        status = self._process.poll() if self._process else None
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            memory = "; most likely this machine's memory ran out" if -status == signal.SIGKILL else ""
            return f"ended by {name}{memory}"
        return last_line(self._folder / _LOG)

    def _begin(self) -> None:
        command = list(self._commands.pop(0))
        log = self._folder / _LOG
        with log.open("ab") as stream:
            stream.write(f"$ {shlex.join(['distill-tune', *command])}\n".encode())
            stream.flush()
            self._process = self._start(command, stream)

    def _start(self, command: Sequence[str], stream: IO[bytes]) -> subprocess.Popen[bytes]:
        # Unbuffered, so that an error is the last line though it is written to another stream than what came before.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", SWEEP: str(os.getpid()), **self._environment}
        return subprocess.Popen(
            [sys.executable, "-m", "distill_tune", *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def last_line(log: Path) -> str:
    """The last line of a log that says something; empty where there is none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    said = said.removeprefix("distill-tune: ")
    return said if len(said) <= _LONGEST else f"{said[: _LONGEST - 3]}..."
