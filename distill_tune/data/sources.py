"""Rows out of local files (JSON, JSONL, CSV, Parquet, a folder of them), with their numbers, or from the hub."""

import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from distill_tune.data.hub import require_hub
from distill_tune.disk import digest, retried
from distill_tune.errors import UserError

Value = TypeVar("Value")
Row = dict[str, Any]
_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_FORMATS = ("json", "csv", "parquet")  # the names under which `datasets` reads local files


class RowError(Exception):
    """One row cannot be used; the message says why, the caller adds file and number."""


@dataclasses.dataclass(frozen=True)
class _Located:
    file: Path
    number: int
    row: Row | None
    fault: str = ""


class LocalRows(Sequence[Row]):
    """The rows of local files, read when first asked for.

    Behaves like the part of :class:`datasets.Dataset` that torchtune uses. A row that could not be parsed raises
    :class:`RowError` when it is taken, so that one bad line does not hide the others.
    """

    def __init__(
        self, files: Sequence[Path], split: str = "train", field: str | None = None, **csv_options: Any
    ) -> None:
        self.files = list(files)
        self._split, self._field, self._csv_options = split, field, csv_options
        self._found = [_state_of(file) for file in self.files]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when a file's content or the way it is read changes."""
        contents = [_retried(file, digest) for file in self.files]
        return hashlib.sha256(repr((self._split, self._field, self._csv_options, contents)).encode()).hexdigest()

    @functools.cached_property
    def _rows(self) -> list[_Located]:
        rows = [row for file in self.files for row in _retried(file, self._read)]
        for file, before in zip(self.files, self._found, strict=True):
            if _state_of(file) != before:
                raise UserError(f"dataset {file}: has changed while it was read; start again once it is written")
        return rows[_slice_of(self._split, len(rows))]

    def _read(self, file: Path) -> list[_Located]:
        return list(_read(file, self._field, self._csv_options))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        located = self._rows[index]
        if located.row is None:
            raise RowError(located.fault)
        return dict(located.row)

    def origin(self, index: int) -> tuple[str, int]:
        """File and row number, as a user would look them up."""
        return str(self._rows[index].file), self._rows[index].number

    def filter(self, keep: Callable[[Row], bool]) -> "LocalRows":
        filtered = LocalRows(self.files, self._split, self._field, **self._csv_options)
        filtered.__dict__["_rows"] = [row for row in self._rows if row.row is None or keep(row.row)]
        return filtered


def _state_of(file: Path) -> tuple[int, int]:
    """What changes when a file is written to."""
    status = _retried(file, Path.stat)
    return status.st_size, status.st_mtime_ns


def _retried(file: Path, function: Callable[[Path], Value]) -> Value:
    """
    Raises:
        UserError: the file cannot be read, also not some seconds later.
    """
    try:
        return retried(f"dataset {file}", lambda: function(file))
    except OSError as error:
        raise UserError(f"dataset {file}: cannot be read: {error.strerror or error}") from error


def load_dataset(source: str, *, split: str = "train", **options: Any) -> Any:
    """What torchtune's datasets and ours load their rows with.

    Args:
        source: a local file, a folder of files, ``json``/``csv``/``parquet`` with ``data_files``, or a hub name.
        split: ``train``, or a part of it as `datasets` writes it: ``train[:5%]``, ``train[100:]``.
        **options: ``data_files``, ``data_dir``, ``field``, ``delimiter``, ``encoding``, and for the hub all that
            :func:`datasets.load_dataset` takes.

    Raises:
        UserError: no such file or dataset.
    """
    files = _local_files(source, options)
    if files is not None:
        known = {key: options[key] for key in ("field", "delimiter", "encoding") if key in options}
        return LocalRows(files, split, **known)
    return _load_from_hub(source, split=split, **options)


def use_in_torchtune() -> None:
    """Let torchtune's dataset components read local files the same way: `source: my.json`, rows with numbers."""
    import distill_tune._torchtune_compat  # noqa: F401

    from torchtune.datasets import _preference, _sft, _text_completion

    _preference.load_dataset = load_dataset
    _sft.load_dataset = load_dataset
    _text_completion.load_dataset = load_dataset


def fingerprint_of(dataset: Any) -> str | None:
    """What tells one state of a dataset's rows from another; None where nothing does."""
    rows = getattr(dataset, "_data", dataset)
    return getattr(rows, "fingerprint", None) or getattr(rows, "_fingerprint", None)


def origin_of(dataset: Any, index: int) -> tuple[str, int]:
    """Where a row stands, for an error message: its file, or what the dataset is called, and its number there."""
    rows = getattr(dataset, "_data", dataset)
    if hasattr(rows, "origin"):
        return rows.origin(index)
    info = getattr(rows, "info", None)
    return str(getattr(info, "dataset_name", None) or "dataset"), index + 1


def _local_files(source: str, options: Mapping[str, Any]) -> list[Path] | None:
    data_files, data_dir = options.get("data_files"), options.get("data_dir")
    if source in _FORMATS and (data_files or data_dir):
        named = data_files if data_files else data_dir
        if isinstance(named, Mapping):
            named = named.get("train") or next(iter(named.values()))
        names = [named] if isinstance(named, str) else list(named or ())
        if any(name.startswith(("http://", "https://", "hf://")) for name in names):
            return None
        return [file for name in names for file in _files_at(name)]
    path = Path(os.path.expanduser(source))
    looks_local = path.suffix in _SUFFIXES or source.startswith((".", "/", "~"))
    return _files_at(source) if looks_local or os.path.exists(path) else None


def _files_at(name: str) -> list[Path]:
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):
        files = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
        if not files:
            raise UserError(f"dataset {path}: the folder has no {', '.join(_SUFFIXES)} file")
        return files
    if not os.path.isfile(path):
        matches = sorted(path.parent.glob(path.name)) if "*" in path.name else []
        if not matches:
            raise UserError(f"dataset {path}: no such file or folder")
        return matches
    if path.suffix not in _SUFFIXES:
        raise UserError(f"dataset {path}: cannot be read; known are {', '.join(_SUFFIXES)}")
    return [path]


def _load_from_hub(source: str, **options: Any) -> Any:
    import datasets

    require_hub(source)
    try:
        return datasets.load_dataset(source, **options)
    except (OSError, ValueError, TypeError) as error:  # no network, no such name, wrong options
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"dataset {source}: neither a local file nor to be had from the hub: {reason}") from error


def _slice_of(split: str, count: int) -> slice:
    """``train[10%:]`` as a slice of so many rows."""
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(split).to_absolute({"train": count})
    except (ValueError, AssertionError, KeyError) as error:
        raise UserError(f"dataset split={split}: local files have one split, train, or a part: train[:5%]") from error
    if len(parts) != 1:
        raise UserError(f"dataset split={split}: name one part; list several datasets to join parts")
    return slice(parts[0].from_, parts[0].to)


def _read(file: Path, field: str | None, csv_options: Mapping[str, Any]) -> Iterator[_Located]:
    if file.suffix == ".parquet":
        yield from _read_parquet(file)
        return
    encoding = csv_options.get("encoding") or "utf-8-sig"  # with or without a byte order mark
    try:
        text = file.read_text(encoding=encoding)
    except LookupError as error:
        raise UserError(f"dataset {file}: encoding={encoding}: there is no such encoding") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"dataset {file}: not {encoding.removesuffix('-sig')} at byte {error.start}; "
            f"save it as UTF-8 (or, for CSV, give its encoding)"
        ) from error
    if file.suffix in (".csv", ".tsv"):
        yield from _read_csv(file, text, csv_options.get("delimiter") or ("\t" if file.suffix == ".tsv" else ","))
    elif file.suffix == ".json" and not _is_json_lines(text):
        yield from _read_json(file, text, field)
    else:
        yield from _read_json_lines(file, text)


def _is_json_lines(text: str) -> bool:
    """A .json file that holds an object a line."""
    first = text.lstrip()[:1]
    if first != "{":
        return False
    try:
        json.loads(text.lstrip().splitlines()[0])
    except json.JSONDecodeError:
        return False
    return "\n" in text.strip()


def _read_json(file: Path, text: str, field: str | None) -> Iterator[_Located]:
    try:
        data = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise UserError(
            f"dataset {file}: broken JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise UserError(f"dataset {file}: broken JSON: nested too deeply") from error
    if field is not None and isinstance(data, dict):
        data = data.get(field)
    if isinstance(data, dict):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        hint = f"; name the list with field: {lists[0]}" if lists else ""
        raise UserError(f"dataset {file}: must be a list of rows, found one object{hint}")
    if not isinstance(data, list):
        raise UserError(f"dataset {file}: must be a list of rows, found {type(data).__name__}")
    for number, row in enumerate(data, 1):
        yield _located(file, number, row)


def _read_json_lines(file: Path, text: str) -> Iterator[_Located]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield _located(file, number, json.loads(line))
        except json.JSONDecodeError as error:
            yield _Located(file, number, None, f"broken JSON at column {error.colno}: {error.msg}")
        except RecursionError:
            yield _Located(file, number, None, "broken JSON: nested too deeply")


def _located(file: Path, number: int, row: Any) -> _Located:
    if isinstance(row, dict):
        return _Located(file, number, row)
    return _Located(file, number, None, f"must be an object with fields, found {type(row).__name__}")


def _read_csv(file: Path, text: str, delimiter: str) -> Iterator[_Located]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 1  # the header
    try:
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                yield _Located(file, number, None, f"has not the {len(reader.fieldnames or [])} columns of the header")
            else:
                yield _Located(file, number, row)
    except csv.Error as error:
        yield _Located(file, number + 1, None, f"broken CSV: {error}")


def _read_parquet(file: Path) -> Iterator[_Located]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"dataset {file}: not a Parquet file: {str(error).splitlines()[0]}") from error
    for number, row in enumerate(rows, 1):
        yield _Located(file, number, row)
