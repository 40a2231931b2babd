"""What the columns of a row hold, and which of them nobody reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from distill_tune.data.sources import Row, RowError
from distill_tune.data.turns import KNOWN_KEYS, is_turns, kind, mark_of, parsed, tools_of
from distill_tune.errors import UserError

GENERATED = "generated"  # the column that says how the recipe generate came to a row
_TOOLS = ("tools", "functions")
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def require_learned(row: Row) -> None:
    """
    Raises:
        RowError: the row says of itself that it is not learned, or less than others.
    """
    names = [name for name in ("weight", "train", "loss") if isinstance(dict.get(row, name), int | float)]
    said = {name: row[name] for name in names if name != "loss" or isinstance(dict.get(row, name), bool)}
    if mark_of(said, "the row") is False:
        shown = ", ".join(f"{name}={value!r}" for name, value in said.items())
        raise RowError(f"says {shown} of itself: it is not to be learned")


def tools_in(row: Row, column: str | None) -> tuple[Mapping[str, Any], ...] | None:
    name = column or first_column(row, _TOOLS)
    return None if name is None or name not in row else tools_of(row[name], name)


def history_in(row: Row, column: str) -> list[tuple[str, str]]:
    """Questions and their answers that went before."""
    found = parsed(row.get(column))
    if found in _EMPTY:
        return []
    pairs = found if isinstance(found, list) else [found]
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"field {column} must be a list of [question, answer], found {kind(pair)}")
    return [(question, answer) for question, answer in pairs]


class _ReadRow(dict):
    """A row that knows which of its columns have been read."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.read: dict[str, None] = {}

    def __getitem__(self, name: str) -> Any:
        self.read[name] = None
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read[name] = None
        return super().get(name, default)


def unread_in(row: Row, read: Callable[[Row], Any]) -> tuple[str, ...]:
    """What a row has and ``read`` does not look at, as names of columns and ``messages[].key``; nothing if it fails."""
    reading = _ReadRow(row)
    try:
        read(reading)
    except RowError:
        return ()
    told = (name for name in row if name not in reading.read and name != GENERATED)
    columns = [name for name in told if row[name] not in _EMPTY]
    keys = [
        f"{name}[].{key}"
        for name in reading.read
        if is_turns(row.get(name))
        for turn in parsed(row[name])
        for key, value in turn.items()
        if key not in KNOWN_KEYS and value not in _EMPTY
    ]
    return tuple(dict.fromkeys([*columns, *keys]))


def column_names(column_map: Mapping[str, str] | None, known: Sequence[str]) -> Mapping[str, str]:
    """
    Raises:
        UserError: a name for something that is not read.
    """
    for name in column_map or {}:
        if name not in known:
            raise UserError(f"dataset.column_map.{name}: nothing of that name is read; known are {', '.join(known)}")
    return column_map or {}


def first_column(row: Row, names: Sequence[str]) -> str | None:
    """The first of these columns in which the row has something; else the first that it has."""
    there = [name for name in names if name in row]
    return next((name for name in there if dict.get(row, name) not in _EMPTY), there[0] if there else None)


def text_field(row: Row, column: str | None, candidates: Sequence[str], meaning: str) -> str:
    return text_in(row, column_of(row, column, candidates, meaning))


def column_of(row: Row, column: str | None, candidates: Sequence[str], meaning: str) -> str:
    """
    Args:
        column: that a config names; None for the first of the candidates.

    Raises:
        RowError: the row has none of them.
    """
    name = column or first_column(row, candidates)
    if name is None:
        has, what = ", ".join(map(str, row)), _reader_of(row) or f"name it with column_map: {{{meaning}: ...}}"
        raise RowError(f"no field {' or '.join(candidates)}; it has {has}: {what}")
    return name


def text_in(row: Row, name: str) -> str:
    value = field_in(row, name)
    if isinstance(value, list) and is_turns(value):
        raise RowError(f"field {name} is a list of turns; take distill_tune.data.chat")
    if not isinstance(value, str):
        raise RowError(f"field {name} must be text, found {kind(value)}")
    return value


def optional_text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise RowError(f"field {name} must be text, found {kind(value)}")
    return value or ""


def field_in(row: Row, name: str) -> Any:
    if name not in row:
        reader = _reader_of(row) if name in ("messages", "text") else ""  # the names that are looked for by themselves
        what = f": {reader}" if reader else ""
        raise RowError(f"no field {name}; it has {', '.join(map(str, row))}{what}")
    return row[name]


def _reader_of(row: Row) -> str:
    """The component that rows with such fields are for; empty where they do not say."""
    if "messages" in row or "conversations" in row:
        return "take distill_tune.data.chat"
    if "instruction" in row and "output" in row:
        return "take distill_tune.data.instruct"
    return ""
