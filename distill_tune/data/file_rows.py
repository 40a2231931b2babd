"""The rows of one file, with their numbers: parsed when they are taken, from the file itself where that is UTF-8."""

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from distill_tune.disk import retried
from distill_tune.errors import UserError

Row = dict[str, Any]
Value = TypeVar("Value")

_WINDOW = 2**20  # bytes that are read at once


class RowError(Exception):
    """One row cannot be used; the message says why, the caller adds file and number."""


class NoAnswer(RowError):
    """A row that asks, and has nothing that is an answer."""


class FileRows(Protocol):
    """All rows of a file."""

    @property
    def numbers(self) -> Sequence[int]:
        """Of each row, as a user would look it up."""

    def __getitem__(self, index: int) -> Row:
        """
        Raises:
            RowError: the row could not be read.
        """


@dataclasses.dataclass(frozen=True)
class HeldRows:
    """Rows that are in memory; a text in place of one says what is wrong with it."""

    rows: Sequence[Row | str]
    numbers: Sequence[int]

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        if isinstance(row, str):
            raise RowError(row)
        return row


class Content(Protocol):
    """UTF-8 that is read from its beginning, or a part of it."""

    def open(self) -> BinaryIO: ...

    def part(self, start: int, stop: int) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class HeldContent:
    """What was unpacked, or had another encoding."""

    content: bytes

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content)

    def part(self, start: int, stop: int) -> bytes:
        return self.content[start:stop]


class ContentOnDisk:
    """A file as it is; of what is read in parts, little is held."""

    def __init__(self, path: Path) -> None:
        self._path, status = path, path.stat()
        self._state = status.st_size, status.st_mtime_ns

    def open(self) -> BinaryIO:
        return self._path.open("rb")

    def part(self, start: int, stop: int) -> bytes:
        first, last = start // _WINDOW, (stop - 1) // _WINDOW
        windows = b"".join(_window(self._path, number, self._state) for number in range(first, last + 1))
        return windows[start - first * _WINDOW : stop - first * _WINDOW]


@functools.lru_cache(maxsize=4)
def _window(path: Path, number: int, state: tuple[int, int]) -> bytes:
    """
    Args:
        state: of the file, so that another one at the same path is read anew.
    """

    def read(file: Path) -> bytes:
        with file.open("rb") as stream:
            stream.seek(number * _WINDOW)
            return stream.read(_WINDOW)

    return read_or_told(path, read)


def read_or_told(file: Path, read: Callable[[Path], Value]) -> Value:
    """
    Raises:
        UserError: the file cannot be read, also not some seconds later.
    """
    try:
        return retried(f"dataset {file}", lambda: read(file))
    except OSError as error:
        raise UserError(f"dataset {file}: cannot be read: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True)
class JsonRows:
    """Where the JSON text of each row lies: its first byte and the one after its last."""

    content: Content
    starts: Sequence[int]
    stops: Sequence[int]
    numbers: Sequence[int]

    def __getitem__(self, index: int) -> Row:
        try:
            row = json.loads(self.content.part(self.starts[index], self.stops[index]).decode())
        except json.JSONDecodeError as error:
            raise RowError(f"broken JSON at column {error.colno}: {error.msg}") from error
        except RecursionError as error:
            raise RowError("broken JSON: nested too deeply") from error
        except ValueError as error:  # a number with more digits than Python reads
            raise RowError(f"cannot be read: {error}") from error
        if not isinstance(row, dict):
            raise RowError(f"must be an object with fields, found {type(row).__name__}")
        return row
