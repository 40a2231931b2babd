"""The rows of one file, with their numbers: JSON, JSON lines, CSV, Parquet, Arrow, packed or not."""

import csv
import dataclasses
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distill_tune.errors import UserError

Row = dict[str, Any]

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}


@dataclasses.dataclass(frozen=True)
class LocatedRow:
    """A row and where a user finds it; without a row, what is wrong with it."""

    file: Path
    number: int
    row: Row | None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class FileOptions:
    """How files are read.

    Attributes:
        field: of a JSON object, the one that holds the list of rows.
        delimiter: of CSV; default a comma, in .tsv a tab.
        encoding: of JSON and CSV; default UTF-8, with or without a byte order mark.
    """

    field: str | None = None
    delimiter: str | None = None
    encoding: str | None = None


def format_of(path: Path) -> str | None:
    """The ending that says how a file is read, in lower case and without that of its packing; None: it cannot be."""
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] in _PACKED:
        endings.pop()
    return endings[-1] if endings and endings[-1] in FORMATS else None


def require_format(path: Path) -> None:
    """
    Raises:
        UserError: a file that cannot be read.
    """
    if format_of(path) is None:
        known = f"{', '.join(FORMATS)}, each also packed as {', '.join(_PACKED)}"
        raise UserError(f"dataset {path}: cannot be read; known are {known}")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.Dataset.save_to_disk` wrote this folder."""
    return all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))


def read_rows(path: Path, options: FileOptions) -> Iterator[LocatedRow]:
    """
    Args:
        path: a file whose :func:`format_of` is known, or a folder for which :func:`is_saved_dataset`.

    Raises:
        UserError: it is not what its ending says.
    """
    if options.field is not None and (path.is_dir() or format_of(path) != ".json"):
        raise UserError(f"dataset.field={options.field}: {path} is no JSON object that holds a list; leave it out")
    if path.is_dir():
        yield from _read_saved_dataset(path)
        return
    ending = format_of(path)
    if ending in (".parquet", ".arrow"):
        yield from _read_table(path, ending)
        return
    text = _text(path, options.encoding or "utf-8-sig")
    if ending in (".csv", ".tsv"):
        yield from _read_csv(path, text, options.delimiter or ("\t" if ending == ".tsv" else ","))
    elif options.field is None and _is_json_lines(text, ending):
        yield from _read_json_lines(path, text)
    else:
        yield from _read_json(path, text, options.field)


def _content(file: Path) -> bytes:
    packing = _PACKED.get(file.suffix.lower())
    if packing is None:
        return file.read_bytes()
    if packing == "xz":
        try:
            return lzma.decompress(file.read_bytes())
        except (lzma.LZMAError, EOFError) as error:
            raise UserError(f"dataset {file}: cannot be unpacked: {error}") from error
    import pyarrow

    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(file.read_bytes()), packing) as stream:
            return stream.read()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"dataset {file}: cannot be unpacked: {str(error).splitlines()[0]}") from error


def _text(file: Path, encoding: str) -> str:
    try:
        return io.TextIOWrapper(io.BytesIO(_content(file)), encoding=encoding).read()
    except LookupError as error:
        raise UserError(f"dataset {file}: encoding={encoding}: there is no such encoding") from error
    except UnicodeError as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else f" ({error})"
        raise UserError(
            f"dataset {file}: not {encoding.removesuffix('-sig')}{where}; "
            f"save it as UTF-8 (or, for CSV, give its encoding)"
        ) from error


def _is_json_lines(text: str, ending: str | None) -> bool:
    """Whether a file holds an object a line, as .json files may as well.

    A line ends with a new line alone: U+2028 and the like may stand inside a JSON text.
    """
    if ending != ".json":
        return True
    line, *more = text.strip().split("\n", 1)
    if not line.startswith("{"):
        return False
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return bool(more) or not any(map(_is_list_of_rows, row.values()))


_OF_A_TURN = {"role", "from"}


def _is_list_of_rows(value: Any) -> bool:
    """Of an object that is the whole file: whether the rows are in it, rather than itself one."""
    return isinstance(value, list) and any(isinstance(item, dict) and not _OF_A_TURN & item.keys() for item in value)


def _read_json(file: Path, text: str, field: str | None) -> Iterator[LocatedRow]:
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
    for number, row in enumerate(data, 1):
        yield _located(file, number, row)


def _read_json_lines(file: Path, text: str) -> Iterator[LocatedRow]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _located(file, number, json.loads(line))
        except json.JSONDecodeError as error:
            yield LocatedRow(file, number, None, f"broken JSON at column {error.colno}: {error.msg}")
        except RecursionError:
            yield LocatedRow(file, number, None, "broken JSON: nested too deeply")
        except ValueError as error:  # a number with more digits than Python reads
            yield LocatedRow(file, number, None, f"cannot be read: {error}")


def _located(file: Path, number: int, row: Any) -> LocatedRow:
    if isinstance(row, dict):
        return LocatedRow(file, number, row)
    return LocatedRow(file, number, None, f"must be an object with fields, found {type(row).__name__}")


def _read_csv(file: Path, text: str, delimiter: str) -> Iterator[LocatedRow]:
    csv.field_size_limit(2**31 - 1)
    if len(delimiter) != 1:
        raise UserError(f"dataset.delimiter={delimiter}: must be one character")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1  # the header
    try:
        names = list(reader.fieldnames or [])
        if again := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(f"dataset {file}: has the column {again[0]} {names.count(again[0])} times; rename it")
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                fault = f"has not the {len(reader.fieldnames or [])} columns of the header"
                yield LocatedRow(file, number, None, fault)
            else:
                yield LocatedRow(file, number, row)
    except csv.Error as error:
        yield LocatedRow(file, number + 1, None, f"broken CSV: {error}")


def _read_table(file: Path, ending: str) -> Iterator[LocatedRow]:
    import pyarrow
    import pyarrow.parquet

    name = "a Parquet file" if ending == ".parquet" else "an Arrow file"
    content = _content(file)
    try:
        if ending == ".parquet":
            table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        else:
            try:
                table = pyarrow.ipc.open_stream(content).read_all()
            except pyarrow.ArrowInvalid:  # the other of Arrow's two layouts
                table = pyarrow.ipc.open_file(content).read_all()
        rows = _rows_of(table)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"dataset {file}: not {name}: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows, 1):
        yield LocatedRow(file, number, row)


def _read_saved_dataset(folder: Path) -> Iterator[LocatedRow]:
    import datasets
    import pyarrow

    try:
        rows = _rows_of(datasets.load_from_disk(str(folder)).with_format("arrow")[:])
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"dataset {folder}: not as save_to_disk writes a folder: {reason}") from error
    for number, row in enumerate(rows, 1):
        yield LocatedRow(folder, number, row)


def _rows_of(table: Any) -> list[Row]:
    """Each row of a table; what Arrow stores as JSON as what it says."""
    types = {field.name: field.type for field in table.schema}
    return [{name: _plain(value, types[name]) for name, value in row.items()} for row in table.to_pylist()]


def _plain(value: Any, of_type: Any) -> Any:
    """A value without the nulls that Arrow fills in: there, all structs of a column have each other's fields."""
    import pyarrow.types

    if value is None:
        return None
    if getattr(of_type, "extension_name", "") == "arrow.json":
        return json.loads(value)
    if pyarrow.types.is_struct(of_type):
        return {field.name: _plain(value[field.name], field.type) for field in of_type if value[field.name] is not None}
    if isinstance(value, list) and not pyarrow.types.is_map(of_type):
        return [_plain(element, of_type.value_type) for element in value]
    return value
