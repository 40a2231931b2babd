"""What a command leaves as it was for whoever calls it from Python."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_VARIABLES = ("OMP_NUM_THREADS", "PYTHONPATH", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")  # that are set for ranks


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """The process' arguments, import path, signal handlers and the variables that ranks are given."""
    arguments, path = sys.argv, [*sys.path]
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        sys.argv, sys.path[:] = arguments, path
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        with contextlib.suppress(ValueError, TypeError):  # not the main thread; a handler that Python did not set
            for number, handler in handlers.items():
                signal.signal(number, handler)
