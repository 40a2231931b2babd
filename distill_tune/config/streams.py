"""A run whose terminal, pipe or log's disk is gone goes on without it."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def going_on_without_output() -> Iterator[None]:
    """While it lasts, what cannot be written to stdout or stderr is lost, and a line on stderr says so once."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Stream(sys.stdout, "stdout"), _Stream(sys.stderr, "stderr")  # type: ignore[assignment]
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # closed
            sys.stdout.flush()
        sys.stdout, sys.stderr = before


class _Stream:
    """Another stream until that fails."""

    def __init__(self, stream: Any, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._losing_what_fails():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._losing_what_fails():
            self._stream.flush()

    @contextlib.contextmanager
    def _losing_what_fails(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:  # a reader that is slow
            pass
        except OSError as error:
            lead_nowhere(self._stream)
            if self._name == "stdout":
                told = "the run goes on without it, and metrics.jsonl has each step"
                print(f"distill-tune: stdout: {error.strerror}; {told}", file=sys.stderr, flush=True)


def lead_nowhere(stream: Any) -> None:
    """What is written to it from now on, and what waits in its buffer, is lost in silence."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def failed_to_write_to_stdout(error: BaseException) -> bool:
    """Whether it is stdout that an error is about: ``| head`` has read enough, or a disk is full."""
    if not isinstance(error, OSError):
        return False
    try:
        sys.stdout.flush()  # what could not be written waits there
    except OSError as again:
        return again.errno == error.errno
    try:
        descriptor = sys.stdout.fileno()
    except (io.UnsupportedOperation, AttributeError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return isinstance(error, BrokenPipeError) and any(event & select.POLLERR for _, event in poll.poll(0))
