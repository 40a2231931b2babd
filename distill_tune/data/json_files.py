"""JSON and JSON lines: found row by row where a file is UTF-8, else read as a whole."""

import array
import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distill_tune.data.file_rows import Content, FileRows, HeldContent, HeldRows, JsonRows, Row
from distill_tune.errors import UserError

_HEAD, _BLOCK = 2**16, 2**20  # bytes
_WHITE_SPACE = " \t\n\r"
_BOM = codecs.BOM_UTF8
_DECODER = json.JSONDecoder()
_OF_A_TURN = {"role", "from"}


def rows_in_parts(content: Content, ending: str) -> FileRows | None:
    """The rows of a file, without holding more than one of them at a time.

    Args:
        ending: ``.json``, which may hold a list or a row a line, or another, which is a row a line.

    Returns:
        None where the file has to be read as a whole: as one that is broken, or whose lines end as of old.
    """
    try:
        with content.open() as stream:
            is_lines = ending != ".json" or _is_json_lines(stream)
        with content.open() as stream:
            return _in_lines(content, stream) if is_lines else _in_list(content, stream)
    except (ValueError, RecursionError):  # whose text is not UTF-8 is told by who reads it whole
        return None


def rows_of_text(file: Path, text: str, ending: str, field: str | None) -> FileRows:
    """
    Args:
        text: of the whole file; lines end with a new line alone: U+2028 and the like may stand inside a JSON text.
        field: of a JSON object, the one that holds the list of rows.

    Raises:
        UserError: neither a list of rows nor a row a line.
    """
    if field is None:
        rows = rows_in_parts(HeldContent(text.encode()), ending)
        if rows is not None:
            return rows
    return _whole(file, text, field)


def _is_json_lines(stream: BinaryIO) -> bool:
    """Whether a .json file holds an object a line, as it may as well."""
    line = stream.readline(_HEAD).removeprefix(_BOM)
    while line and not line.strip():
        line = stream.readline(_HEAD)
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        row = json.loads((line if line.endswith(b"\n") else line + stream.readline()).decode())
    except (ValueError, RecursionError):
        return False
    return any(more.strip() for more in stream) or not any(map(_is_list_of_rows, row.values()))


def _is_list_of_rows(value: Any) -> bool:
    """Of an object that is the whole file: whether the rows are in it, rather than itself one."""
    return isinstance(value, list) and any(isinstance(item, dict) and not _OF_A_TURN & item.keys() for item in value)


def _in_lines(content: Content, stream: BinaryIO) -> JsonRows | None:
    starts, stops, numbers = (array.array("q") for _ in range(3))
    position = 0
    for number, line in enumerate(stream, 1):
        begin = len(_BOM) if number == 1 and line.startswith(_BOM) else 0
        end = len(line.rstrip(b"\r\n"))
        text = line[begin:end].decode()
        if "\r" in text:  # lines that end with it alone
            return None
        if text.strip():
            starts.append(position + begin)
            stops.append(position + end)
            numbers.append(number)
        position += len(line)
    return JsonRows(content, starts, stops, numbers)


def _in_list(content: Content, stream: BinaryIO) -> JsonRows | None:
    starts, stops = array.array("q"), array.array("q")
    for start, stop in _elements(stream):
        starts.append(start)
        stops.append(stop)
    return JsonRows(content, starts, stops, range(1, len(starts) + 1))


def _elements(stream: BinaryIO) -> Iterator[tuple[int, int]]:
    """Of each element of a list that is the whole stream, the first byte and the one after its last.

    Raises:
        ValueError: it is no list, or broken.
    """
    text = _Text(stream)
    if text.next_character() != "[":
        raise ValueError("no list")
    text.skip(1)
    if (separator := text.next_character()) == "]":
        text.skip(1)
    while separator != "]":
        text.next_character()
        yield text.skip(_length_of_value(text))
        if (separator := text.next_character()) not in ("]", ","):
            raise ValueError("neither another element nor the end")
        text.skip(1)
    if text.next_character():
        raise ValueError("something follows the list")


def _length_of_value(text: "_Text") -> int:
    """How many characters the value has that is next.

    Raises:
        ValueError: there is none, or it is broken.
    """
    while True:
        try:
            _, stop = _DECODER.raw_decode(text.text, text.at)
        except json.JSONDecodeError:
            if not text.read():  # it may only be cut
                raise
            continue
        length = stop - text.at
        if stop < len(text.text) or not text.read():  # a number may go on
            return length


class _Text:
    """A stream of UTF-8 as characters, with the bytes that they are at.

    Attributes:
        text: a part of the stream.
        at: which character of it is next.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self._byte = "", 0, 0
        self._size = _BLOCK
        if self.read() and self.text.startswith("\ufeff"):
            self.skip(1)

    def read(self) -> bool:
        """More behind what is not passed yet, twice as much where nothing was passed since; False at the end."""
        self._size = 2 * self._size if self.text and not self.at else _BLOCK
        more = self._stream.read(self._size)
        self.text, self.at = self.text[self.at :] + self._decoder.decode(more, final=not more), 0
        return bool(more)

    def skip(self, characters: int) -> tuple[int, int]:
        """The bytes that are passed: the first, and the one after the last."""
        start = self._byte
        self._byte += len(self.text[self.at : self.at + characters].encode())
        self.at += characters
        return start, self._byte

    def next_character(self) -> str:
        """The next that is no white space, without passing it; empty at the end."""
        while True:
            rest = self.at
            while rest < len(self.text) and self.text[rest] in _WHITE_SPACE:
                rest += 1
            self.skip(rest - self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.read():
                return ""


def _whole(file: Path, text: str, field: str | None) -> HeldRows:
    try:
        data = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise UserError(
            f"dataset {file}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise UserError(f"dataset {file}: broken JSON: nested too deeply") from error
    except ValueError as error:  # a number with more digits than Python reads
        raise UserError(f"dataset {file}: cannot be read: {error}") from error
    if field is not None:
        if not isinstance(data, dict) or field not in data:
            found = f"its fields are {', '.join(data)}" if isinstance(data, dict) else f"it is a {type(data).__name__}"
            raise UserError(f"dataset.field={field}: {file} is no JSON object with this field; {found}")
        data = data[field]
    if isinstance(data, dict):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        hint = f"; name the list with field: {lists[0]}" if lists else ""
        raise UserError(f"dataset {file}: must be a list of rows, found one object{hint}")
    if not isinstance(data, list):
        raise UserError(f"dataset {file}: must be a list of rows, found {type(data).__name__}")
    rows: list[Row | str] = [
        row if isinstance(row, dict) else f"must be an object with fields, found {type(row).__name__}" for row in data
    ]
    return HeldRows(rows, range(1, len(rows) + 1))
