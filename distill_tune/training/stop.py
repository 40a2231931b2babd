"""A run that is told to stop: by Ctrl-C, by a scheduler's SIGTERM, or by the signal that Slurm sends before the end."""

import contextlib
import os
import signal
import sys
from types import FrameType, TracebackType
from typing import Any, NoReturn

from distill_tune.training.distributed import leave

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """While it is entered, a signal lets the step end instead of the process; the same signal again ends that at once.

    Attributes:
        number: of the signal that came; 0 while none has.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        with contextlib.suppress(ValueError):  # not the main thread: then signals are another's
            self._before = {number: signal.signal(number, self._asked) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def leave(self, step: int, number: int) -> NoReturn:
        """End the run after its last checkpoint, with 128 + the signal's number as a shell would tell it."""
        print(f"stopped after step {step} by {signal.Signals(number).name}; resume=auto goes on", flush=True)
        leave()
        sys.exit(128 + number)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        # Not what was there before: a shell has its background jobs ignore SIGINT.
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        # print is not safe in the middle of a print.
        if os.environ.get("RANK", "0") == "0":
            name = signal.Signals(number).name
            os.write(2, f"distill-tune: {name}: finishing the step, then a checkpoint; once more ends now\n".encode())
