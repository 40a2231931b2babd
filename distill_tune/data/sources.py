"""Rows out of local files, with their numbers, or from the hub."""

import functools
import glob
import hashlib
import inspect
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from distill_tune.config.files import local_path
from distill_tune.data.file_rows import FileRows, NoAnswer, Row, RowError, read_or_told
from distill_tune.data.hub import require_hub
from distill_tune.data.row_files import FileOptions, format_of, read_rows, require_format
from distill_tune.data.row_folders import Folder, read_folder
from distill_tune.errors import UserError
from distill_tune.kept_digests import kept_digest

__all__ = [
    "LocalRows",
    "NoAnswer",
    "Row",
    "RowError",
    "fingerprint_of",
    "load_dataset",
    "origin_of",
    "use_in_torchtune",
]

_FORMATS = ("json", "csv", "parquet", "arrow")  # the names under which `datasets` reads local files
_OF_FILES = ("field", "delimiter", "encoding")
_REMOTE = ("http://", "https://", "hf://")


class LocalRows(Sequence[Row]):
    """The rows of local files, read when first asked for.

    Behaves like the part of :class:`datasets.Dataset` that torchtune uses. A row that could not be parsed raises
    :class:`RowError` when it is taken, so that one bad line does not hide the others.

    Args:
        splits: the files of each; a folder that `save_to_disk` wrote is a file, too.
        split: which of them, or a part of one, or several, as `datasets` writes it.
    """

    def __init__(self, splits: Mapping[str, Sequence[Path]], split: str, options: FileOptions) -> None:
        self._splits, self._split, self._options = splits, split, options
        self.names = _names_in(split)
        self.files = [file for name in self.names for file in splits[name]]
        self._found = [_state_of(file) for file in self.files]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when a file's content or the way it is read changes."""
        contents = [
            (format_of(file), read_or_told(file, kept_digest)) for path in self.files for file in _files_of(path)
        ]
        return hashlib.sha256(repr((self._split, self._options, contents)).encode()).hexdigest()

    @functools.cached_property
    def _rows(self) -> list[FileRows]:
        """Of each file.

        Raises:
            UserError: no file has any.
        """
        rows = [read_or_told(file, self._read) for file in self.files]
        self.require_unchanged()
        if not any(of_file.numbers for of_file in rows):
            is_empty = "is empty" if len(rows) == 1 else "are empty"
            raise UserError(f"dataset {', '.join(map(str, self.files))}: {is_empty}: there is no row to read")
        return rows

    @functools.cached_property
    def _places(self) -> numpy.ndarray:
        """The file's number and the place there of each row, ``[rows, 2]``."""
        counts = [len(of_file.numbers) for of_file in self._rows]
        files = numpy.repeat(numpy.arange(len(counts), dtype=numpy.int32), counts)
        places = numpy.concatenate([numpy.zeros(0, numpy.int32), *(numpy.arange(n, dtype=numpy.int32) for n in counts)])
        ends = numpy.cumsum([0, *(len(self._splits[name]) for name in self.names)])
        firsts = numpy.cumsum([0, *counts])[ends]  # of each split, its first row
        of_splits = dict(zip(self.names, itertools.pairwise(firsts.tolist()), strict=True))
        parts = _parts_of(self._split, {name: stop - first for name, (first, stop) in of_splits.items()})
        chosen = [numpy.arange(*of_splits[name])[part] for name, part in parts]
        return numpy.stack([files, places], axis=1)[numpy.concatenate(chosen)]

    def require_unchanged(self) -> None:
        """
        Raises:
            UserError: a file is not as it was when this was made.
        """
        for file, before in zip(self.files, self._found, strict=True):
            if _state_of(file) != before:
                raise UserError(f"dataset {file}: has changed while it was read; start again once it is written")

    def _read(self, file: Path) -> FileRows:
        return read_rows(file, self._options)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        file, place = self._places[index].tolist()
        return dict(self._rows[file][place])

    def origin(self, index: int) -> tuple[str, int]:
        """File and row number, as a user would look them up."""
        file, place = self._places[index].tolist()
        return str(self.files[file]), self._rows[file].numbers[place]

    def filter(self, keep: Callable[[Row], bool]) -> "LocalRows":
        """Those that ``keep`` says, and those that cannot be read, which are told by their number."""
        kept = []
        for index in range(len(self)):
            try:
                kept.append(keep(self[index]))
            except RowError:
                kept.append(True)
        filtered = LocalRows(self._splits, self._split, self._options)
        filtered.__dict__ |= {"_rows": self._rows, "_places": self._places[numpy.array(kept, bool)]}
        return filtered


def _files_of(path: Path) -> list[Path]:
    """The file itself, or all of a saved dataset."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _state_of(path: Path) -> list[tuple[int, int]]:
    """What changes when a file is written to."""
    found = [read_or_told(file, Path.stat) for file in _files_of(path)]
    return [(status.st_size, status.st_mtime_ns) for status in found]


def load_dataset(source: str, *, split: str = "train", **options: Any) -> Any:
    """What torchtune's datasets and ours load their rows with.

    What a folder has and is not read is told in a line.

    Args:
        source: a local file, a folder of files, ``json``/``csv``/``parquet``/``arrow`` with ``data_files`` or
            ``data_dir``, or a hub name.
        split: ``train``, another one of a folder's, or a part as `datasets` writes it: ``train[:5%]``, ``test[100:]``.
        **options: ``data_files``, ``data_dir``, ``name``, ``field``, ``delimiter``, ``encoding``, and for the hub all
            that :func:`datasets.load_dataset` takes.

    Raises:
        UserError: no such file, dataset or split.
    """
    folder = _local(source, options)
    if folder is None:
        return _load_from_hub(source, split=split, **options)
    folder.require(split, _names_in(split))
    rows = LocalRows(folder.splits, split, _file_options(options))
    if told := folder.told(rows.names):
        print(f"dataset {options.get('data_dir') or source}: {told}")
    return rows


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


def require_unchanged(dataset: Any) -> None:
    """
    Raises:
        UserError: a file has changed since its rows were found.
    """
    rows = getattr(dataset, "_data", dataset)
    if isinstance(rows, LocalRows):
        rows.require_unchanged()


def origin_of(dataset: Any, index: int) -> tuple[str, int]:
    """Where a row stands, for an error message: its file, or what the dataset is called, and its number there."""
    rows = getattr(dataset, "_data", dataset)
    if hasattr(rows, "origin"):
        return rows.origin(index)
    info = getattr(rows, "info", None)
    return str(getattr(info, "dataset_name", None) or "dataset"), index + 1


def _local(source: str, options: Mapping[str, Any]) -> Folder | None:
    """The files that are meant; None where they are not on this machine."""
    from datasets.data_files import sanitize_patterns

    data_files, data_dir, name = (options.get(key) for key in ("data_files", "data_dir", "name"))
    if source in _FORMATS and (data_files or data_dir):
        named = sanitize_patterns(data_files or data_dir)
        if any(str(pattern).startswith(_REMOTE) for patterns in named.values() for pattern in patterns):
            return None
        base = local_path(data_dir if data_files and data_dir else "")
        files = {split: [base / local_path(each) for each in names] for split, names in named.items()}
        only = [path for paths in files.values() for path in paths]
        if len(only) == 1 and os.path.isdir(only[0]):
            return read_folder(only[0], name)
        return Folder({split: [file for path in paths for file in _files_at(path)] for split, paths in files.items()})
    path = local_path(source)
    if os.path.isdir(path):
        return read_folder(path / (data_dir or ""), name, data_files)
    if not (format_of(path) or source.startswith((".", "/", "~")) or os.path.exists(path)):
        return None
    if data_files or data_dir:
        raise UserError(f"dataset {source}: is no folder; data_files and data_dir are for those")
    return Folder({"train": _files_at(path)})


def _files_at(path: Path) -> list[Path]:
    """A file, or those that a pattern means."""
    names = [str(path)] if os.path.exists(path) else sorted(glob.glob(str(path), recursive=True))
    files = [Path(name) for name in names if os.path.isfile(name)]
    if not files:
        raise UserError(f"dataset {path}: no such file or folder")
    for file in files:
        require_format(file)
    return files


def _file_options(options: Mapping[str, Any]) -> FileOptions:
    """
    Raises:
        UserError: an option that changes what `datasets` reads, and not what is read here.
    """
    import datasets

    of_hub = inspect.signature(datasets.load_dataset).parameters
    if unread := [key for key, value in options.items() if key not in (*_OF_FILES, *of_hub) and value is not None]:
        raise UserError(f"dataset.{unread[0]}: local files heed {', '.join(_OF_FILES)} alone")
    return FileOptions(**{key: options.get(key) for key in _OF_FILES})


def _load_from_hub(source: str, **options: Any) -> Any:
    import datasets

    require_hub(source)
    try:
        return datasets.load_dataset(source, **options)
    except (OSError, ValueError, TypeError) as error:  # no network, no such name, wrong options
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"dataset {source}: neither a local file nor to be had from the hub: {reason}") from error


def without_filling(rows: Any) -> Any:
    """The hub's rows without the nulls inside their columns, which Arrow fills in where rows have other fields."""
    return rows.with_transform(_without_filling) if hasattr(rows, "with_transform") else rows


def _without_filling(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [_without_nulls(value) for value in values] for name, values in columns.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _names_in(split: str) -> list[str]:
    """The splits of which ``train[:90%]+test`` names parts."""
    return list(dict.fromkeys(re.split(r"[\[(]", part, maxsplit=1)[0].strip() for part in str(split).split("+")))


def _parts_of(split: str, sizes: Mapping[str, int]) -> list[tuple[str, slice]]:
    """``train[10%:]`` as slices of so many rows."""
    from datasets import ReadInstruction

    try:
        parts = ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"dataset split={split}: {reason}; a part of a split is written train[:90%]") from error
    return [(part.splitname, slice(part.from_, part.to)) for part in parts]
