"""What models have answered so far: a line for each sample, appended as it comes, found again by what it was made from.

A process appends to a file of its own, so that several share a folder. A line that a kill or a full disk has cut is
taken back when its file is opened the next time; whoever reads passes over it.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distill_tune.disk import retried
from distill_tune.errors import UserError
from distill_tune.generation.answers import Sample

_KEY_DIGITS = 32
_SECONDS_BETWEEN_FLUSHES = 10


def sample_key(identity: Mapping[str, Any], seed: int, prompt: Sequence[int], number: int) -> str:
    """SHA-256, its first 32 hexadecimal digits.

    Args:
        identity: all else that decides on a sample: the model's content, its ends, the sampling.
        prompt: token ids, in which template and date show.
        number: among the samples of the prompt.
    """
    asked = [identity, seed, list(prompt), number]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:_KEY_DIGITS]


class Record:
    """The samples of a folder, found by their keys and read when they are asked for.

    Attributes:
        num_damaged: lines that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("*.jsonl"))
        self._places: dict[str, tuple[int, int]] = {}  # number of the file, byte of the line
        self.num_damaged = 0
        for number, path in enumerate(self._files):
            with path.open("rb") as stream:
                start = 0
                for line in stream:
                    if line.endswith(b"\n"):
                        self._note(line, number, start)
                    start += len(line)

    def _note(self, line: bytes, number: int, start: int) -> None:
        try:
            self._places[_sample_of(line).key] = (number, start)
        except (ValueError, TypeError):
            self.num_damaged += 1

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getitem__(self, key: str) -> Sample:
        number, start = self._places[key]
        path = self._files[number]

        def read() -> bytes:
            with path.open("rb") as stream:
                stream.seek(start)
                return stream.readline()

        return _sample_of(retried(f"reading {path}", read))


class SampleFile:
    """One process' part of a record, to be added to.

    Args:
        folder: of the record; made where it is not there.
        rank: of the process.

    Raises:
        UserError: it cannot be written.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"rank_{rank:05}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("ab+", buffering=0)
            self._take_back_torn_line()
        except OSError as error:
            raise UserError(f"{self._path}: cannot be written: {error.strerror}") from error
        self._flushed = time.monotonic()

    def _take_back_torn_line(self) -> None:
        size = self._stream.seek(0, os.SEEK_END)
        whole, block = size, 2**16
        while whole:
            begin = max(0, whole - block)
            self._stream.seek(begin)
            part = self._stream.read(whole - begin)
            if (at := part.rfind(b"\n")) >= 0:
                whole = begin + at + 1
                break
            whole = begin
        if whole < size:
            self._stream.truncate(whole)

    def add(self, sample: Sample) -> None:
        """
        Raises:
            UserError: the disk is full, or fails; what was added before is there.
        """
        line = (json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n").encode()
        try:
            before = self._stream.seek(0, os.SEEK_END)
            if (written := self._stream.write(line)) != len(line):
                self._stream.truncate(before)
                raise UserError(self._told(f"only {written} of {len(line)} bytes could be written; is the disk full?"))
            if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
                os.fsync(self._stream.fileno())
                self._flushed = time.monotonic()
        except OSError as error:
            raise UserError(self._told(str(error.strerror))) from error

    def _told(self, reason: str) -> str:
        return f"{self._path}: {reason}; what was answered before is kept: free some, and the same command goes on"

    def __enter__(self) -> "SampleFile":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError:
            if error is None:
                raise
        finally:
            self._stream.close()


def _sample_of(line: bytes) -> Sample:
    """
    Raises:
        ValueError, TypeError: it is none.
    """
    return Sample(**json.loads(line))
