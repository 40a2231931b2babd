"""Output that nobody reads any more, or that a disk has no room for: a command ends, a run goes on."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class OutputLost(OSError):
    """What was printed could not be written to stdout."""


@contextlib.contextmanager
def telling_of_lost_output() -> Iterator[None]:
    """While it lasts, a failed write to stdout raises :class:`OutputLost`, which is no other file's error."""

    def tell(error: OSError) -> None:
        raise OutputLost(error.errno, error.strerror) from error

    with _in_place_of("stdout", tell):
        yield


@contextlib.contextmanager
def going_on_without_output() -> Iterator[None]:
    """While it lasts, what cannot be written to stdout or stderr is lost, and a line on stderr says so once."""

    def tell(error: OSError) -> None:
        lead_nowhere(sys.stdout)
        told = "the run goes on without it, and metrics.jsonl has each step"
        print(f"distill-tune: stdout: {error.strerror}; {told}", file=sys.stderr, flush=True)

    with _in_place_of("stderr", lambda error: lead_nowhere(sys.stderr)), _in_place_of("stdout", tell):
        try:
            yield
        finally:
            sys.stdout.flush()


def lead_nowhere(stream: Any) -> None:
    """What is written to it from now on, and what waits in its buffer, is lost in silence."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _in_place_of(name: str, when_it_fails: Callable[[OSError], None]) -> Iterator[None]:
    before = getattr(sys, name)
    setattr(sys, name, _Stream(before, when_it_fails))
    try:
        yield
    finally:
        setattr(sys, name, before)


class _Stream:
    """Another stream, and what to do when that fails."""

    def __init__(self, stream: Any, when_it_fails: Callable[[OSError], None]) -> None:
        self._stream, self._when_it_fails = stream, when_it_fails

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[[], object]) -> None:
        try:
            function()
        except BlockingIOError:  # a reader that is slow: this text is lost, the next may not be
            pass
        except OSError as error:
            self._when_it_fails(error)
