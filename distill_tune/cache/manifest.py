"""manifest.json of a cache: what it holds, of what, and how it was made."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distill_tune.disk import write_whole
from distill_tune.errors import UserError

MANIFEST = "manifest.json"
_FORMAT = 1
_SIZES = ("bytes", "rows", "positions")
_TEXT_OR_NONE, _NUMBER_OR_NONE = (str, type(None)), (int, float, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "settings": dict,
    "seed": int,
    "teacher": dict,
    "tokenizer": _TEXT_OR_NONE,
    "template": _TEXT_OR_NONE,
    "date": _TEXT_OR_NONE,
    "package": str,
    "rows": list,
    "files": dict,
    "beside": dict,
    "finished": bool,
}

# What no key of a config says of a teacher.
_TOLD = {"teacher_content": "content of teacher_model", "teacher_names": "names of teachers"}
_NOT_SET = "not set"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """
    Attributes:
        kind: of its records.
        settings: fields of the kind's :class:`~distill_tune.cache.encoding.Encoding`.
        seed: of the draws.
        teacher: content of its weights, dtype, and what else decides on its word.
        tokenizer: fingerprint of the vocabulary that the rows are written with; None of one that cannot be read.
        template: fingerprint of the chat template; None where there is none.
        date: that a template writes.
        package: version that began it.
        rows: fingerprints of the datasets that it was last made for.
        files: of each shard, by name, its bytes, rows and positions; a shard's name has its checksum.
        beside: SHA-256 of each other file, by name.
        finished: all rows of these datasets are there.
    """

    kind: str
    settings: Mapping[str, Any]
    seed: int
    teacher: Mapping[str, Any]
    tokenizer: str | None = None
    template: str | None = None
    date: str | None = None
    package: str = ""
    rows: tuple[str, ...] = ()
    files: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    beside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    finished: bool = False
    format: int = _FORMAT

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """
        Raises:
            UserError: there is none, or one that cannot be read.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if values["format"] != _FORMAT:
                raise UserError(f"{folder}: a cache of format {values['format']}; this version reads {_FORMAT}")
            _require_readable(values)
            return cls(**values | {"rows": tuple(values["rows"])})
        except FileNotFoundError as error:
            raise UserError(f"{folder}: no cache of a teacher, which has a {MANIFEST}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{folder / MANIFEST}: cannot be read: {type(error).__name__}: {error}") from error

    def write(self, folder: Path) -> None:
        """
        Raises:
            UserError: the disk is full, or fails.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"
        write_or_tell(folder / MANIFEST, text.encode())

    def differences(self, other: "Manifest") -> Iterator[str]:
        """What of another's records would not be as these are: ``cache.draws was 50, is 12``."""
        yield from _differing({"cache.kind": self.kind}, {"cache.kind": other.kind})
        if self.kind == other.kind:  # else the settings of each mean nothing of the other
            yield from _differing(_named("cache.{}", self.settings), _named("cache.{}", other.settings))
        of_teachers = (_named("teacher_{}", one.teacher) for one in (self, other))
        yield from _differing(*({_TOLD.get(name, name): value for name, value in one.items()} for one in of_teachers))
        for name in ("seed", "tokenizer"):
            yield from _differing({name: getattr(self, name)}, {name: getattr(other, name)})

    @property
    def num_rows(self) -> int:
        return sum(file["rows"] for file in self.files.values())

    @property
    def num_positions(self) -> int:
        return sum(file["positions"] for file in self.files.values())

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(file["bytes"] for file in self.files.values())


def _require_readable(values: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a value that no manifest has.
    """
    for name, of in _TYPES.items():
        if name in values and not isinstance(values[name], of):
            raise ValueError(f"{name} is {values[name]!r}")
    for name, value in values["settings"].items():
        if isinstance(value, bool) or not isinstance(value, _NUMBER_OR_NONE):
            raise ValueError(f"{name} of settings is {value!r}")
    for name, sizes in values["files"].items():
        if not isinstance(sizes, dict) or not all(type(sizes.get(size)) is int for size in _SIZES):
            raise ValueError(f"{name} of files is {sizes!r}")


def _named(key: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """By the key of a config."""
    return {key.format(name): value for name, value in values.items()}


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            yield f"{name} was {_NOT_SET if was is None else was}, is {_NOT_SET if is_now is None else is_now}"


def write_or_tell(path: Path, content: bytes) -> None:
    """:func:`write_whole` of what is beside the shards.

    Raises:
        UserError: the disk is full, or fails.
    """
    try:
        write_whole(path, content)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written: {error.strerror}; what was closed is there: make room, and start again"
        ) from error
