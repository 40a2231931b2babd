"""The rows of one file, with their numbers: JSON, JSON lines, CSV, Parquet, Arrow, lines of text, packed or not."""

import codecs
import contextlib
import csv
import dataclasses
import io
import json
import lzma
from pathlib import Path
from typing import Any

from distill_tune.data.file_rows import ContentOnDisk, FileRows, HeldContent, HeldRows, Row, RowError
from distill_tune.data.json_files import rows_in_parts, rows_of_text
from distill_tune.errors import UserError, one_line

FORMATS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
LINES = ".txt"  # of which a folder may have some that are no rows
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
_UTF_8 = ("utf-8", "utf-8-sig")
_BLOCK = 256  # rows of a table that are Python objects at a time


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
    return endings[-1] if endings and endings[-1] in (*FORMATS, LINES) else None


def require_format(path: Path) -> None:
    """
    Raises:
        UserError: a file that cannot be read.
    """
    if format_of(path) is None:
        known = f"{', '.join((*FORMATS, LINES))}, each also packed as {', '.join(_PACKED)}"
        raise UserError(f"dataset {path}: cannot be read; known are {known}")


def is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets.Dataset.save_to_disk` wrote this folder."""
    return all((folder / name).is_file() for name in ("dataset_info.json", "state.json"))


def read_rows(path: Path, options: FileOptions) -> FileRows:
    """
    Args:
        path: a file whose :func:`format_of` is known, or a folder for which :func:`is_saved_dataset`.

    Raises:
        UserError: it is not what its ending says.
    """
    if options.field is not None and (path.is_dir() or format_of(path) != ".json"):
        raise UserError(f"dataset.field={options.field}: {path} is no JSON object that holds a list; leave it out")
    if path.is_dir():
        return _read_saved_dataset(path)
    ending = str(format_of(path))
    if ending in (".parquet", ".arrow"):
        return _read_table(path, ending)
    encoding = options.encoding or "utf-8-sig"
    if ending == LINES:
        return _read_lines(_text(path, encoding))
    if ending in (".csv", ".tsv"):
        return _read_csv(path, _text(path, encoding), options.delimiter or ("\t" if ending == ".tsv" else ","))
    if options.field is None and _is_utf_8(encoding):
        is_packed = path.suffix.lower() in _PACKED
        rows = rows_in_parts(HeldContent(_content(path)) if is_packed else ContentOnDisk(path), ending)
        if rows is not None:
            return rows
    return rows_of_text(path, _text(path, encoding), ending, options.field)


def _is_utf_8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name in _UTF_8
    except LookupError:
        return False


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
    content = _content(file)
    try:
        return io.TextIOWrapper(io.BytesIO(content), encoding=encoding).read()
    except LookupError as error:
        raise UserError(f"dataset {file}: encoding={encoding}: there is no such encoding") from error
    except UnicodeError as error:
        where = f" at byte {error.start}" if isinstance(error, UnicodeDecodeError) else f" ({error})"
        raise UserError(
            f"dataset {file}: not {encoding.removesuffix('-sig')}{where}; "
            f"save it as UTF-8, or name its encoding, such as dataset.encoding={_perhaps(content)}"
        ) from error


def _perhaps(content: bytes) -> str:
    """An encoding by which this is text, the likeliest of those that are common."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for encoding in ("utf-8", "gbk"):
        with contextlib.suppress(UnicodeDecodeError):
            content.decode(encoding)
            return encoding
    return "latin-1"


def _read_lines(text: str) -> HeldRows:
    """A row with a ``text`` for each line that is not empty."""
    lines = [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return HeldRows([{"text": line} for _, line in lines], [number for number, _ in lines])


def _read_csv(file: Path, text: str, delimiter: str) -> HeldRows:
    csv.field_size_limit(2**31 - 1)
    if len(delimiter) != 1:
        raise UserError(f"dataset.delimiter={delimiter}: must be one character")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row | str] = []
    try:
        names = list(reader.fieldnames or [])
        if again := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise UserError(f"dataset {file}: has the column {again[0]} {names.count(again[0])} times; rename it")
        for row in reader:
            is_whole = None not in row and None not in row.values()
            rows.append(row if is_whole else f"has not the {len(names)} columns of the header")
    except csv.Error as error:
        rows.append(f"broken CSV: {error}")
    return HeldRows(rows, range(2, len(rows) + 2))  # the header is the first


def _read_table(file: Path, ending: str) -> "TableRows":
    import pyarrow
    import pyarrow.parquet

    name = "a Parquet file" if ending == ".parquet" else "an Arrow file"
    content = _content(file)
    try:
        if ending == ".parquet":
            return TableRows(pyarrow.parquet.read_table(pyarrow.BufferReader(content)))
        try:
            return TableRows(pyarrow.ipc.open_stream(content).read_all())
        except pyarrow.ArrowInvalid:  # the other of Arrow's two layouts
            return TableRows(pyarrow.ipc.open_file(content).read_all())
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"dataset {file}: not {name}: {str(error).splitlines()[0]}") from error


def _read_saved_dataset(folder: Path) -> "TableRows":
    import datasets
    import pyarrow

    try:
        return TableRows(datasets.load_from_disk(str(folder)).with_format("arrow")[:])
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError) as error:
        raise UserError(f"dataset {folder}: not as save_to_disk writes a folder: {one_line(error)}") from error


class TableRows:
    """The rows of an Arrow table, some hundred of which are Python objects at a time."""

    def __init__(self, table: Any) -> None:
        self.numbers = range(1, table.num_rows + 1)
        self._table, self._types = table, {field.name: field.type for field in table.schema}
        self._taken: tuple[int, list[Row]] = (-1, [])

    def __getitem__(self, index: int) -> Row:
        import pyarrow

        block, at = divmod(index, _BLOCK)
        try:
            if block != self._taken[0]:
                self._taken = block, self._rows_from(block * _BLOCK, _BLOCK)
            return self._taken[1][at]
        except (pyarrow.ArrowException, ValueError, OverflowError):
            try:  # it may be another of them
                return self._rows_from(index, 1)[0]
            except (pyarrow.ArrowException, ValueError, OverflowError) as error:
                raise RowError(f"cannot be read: {str(error).splitlines()[0]}") from error

    def _rows_from(self, start: int, count: int) -> list[Row]:
        rows = self._table.slice(start, count).to_pylist()
        return [{name: _plain(value, self._types[name]) for name, value in row.items()} for row in rows]


def _plain(value: Any, of_type: Any) -> Any:
    """A value without the nulls that Arrow fills in, whose structs of a column all have each other's fields; what is
    stored as JSON as what it says."""
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
