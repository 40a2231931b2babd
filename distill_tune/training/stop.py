"""A run that is told to stop: by Ctrl-C, a terminal that closes, a scheduler's SIGTERM or a signal that Slurm sends."""

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, NoReturn

from distill_tune.launch import is_heeded
from distill_tune.training.distributed import leave

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """While it is entered, a signal lets the step end instead of the process; the same signal again ends that at once.

    Args:
        then: what the run does now.
        goes_on: how it is gone on with.
        unit: what is counted.

    Attributes:
        number: of the signal that came; 0 while none has.
    """

    def __init__(
        self,
        then: str = "finishing the step, then a checkpoint",
        goes_on: str = "resume=auto goes on",
        unit: str = "step",
    ) -> None:
        self.number = 0
        self._then, self._goes_on, self._unit = then, goes_on, unit
        self._before: dict[int, Any] = {}
        self._last_words = ""

    def __enter__(self) -> "StopSignals":
        # Under nohup a run outlives its terminal.
        numbers = [number for number in _SIGNALS if number != signal.SIGHUP or is_heeded(number)]
        with contextlib.suppress(ValueError):  # not the main thread: then signals are another's
            self._before = {number: signal.signal(number, self._asked) for number in numbers}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._last_words:  # below the progress bar, which is entered later and ends earlier
            print(self._last_words, flush=True)

    def leave(self, done: int, number: int) -> NoReturn:
        """End the run after so many steps, which are kept, with 128 + the signal's number as a shell would tell it."""
        leave()
        when = f"after {self._unit} {done}" if done else f"before the first {self._unit} was through"
        self._last_words = f"stopped {when} by {signal.Signals(number).name}; {self._goes_on}"
        sys.exit(128 + number)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        # Not what was there before: a shell has its background jobs ignore SIGINT.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # print is not safe in the middle of a print.
        if os.environ.get("RANK", "0") == "0":
            name = signal.Signals(number).name
            told = f"distill-tune: {name}: {self._then}; once more ends now\n"
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, ("\n" * os.isatty(2) + told).encode())  # where the progress bar stands, and a terminal's ^C
