"""Rows to tokens, once: read, checked and tokenised in parallel before any model loads, then kept in a cache."""

import concurrent.futures.process
import contextlib
import dataclasses
import functools
import gc
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import distill_tune
from distill_tune.config.components import instantiate
from distill_tune.data.batch import Row
from distill_tune.data.datasets import IGNORE_INDEX, read_behind
from distill_tune.data.prompts import PLAIN_READING, Prompt, Reading
from distill_tune.data.sources import RowError, fingerprint_of, origin_of, use_in_torchtune
from distill_tune.errors import UserError

_CHUNK = 256  # rows that a worker takes at a time
_SHOWN_FAULTS = 5

Tokens = tuple[numpy.ndarray, numpy.ndarray]  # of a row, and its labels


@dataclasses.dataclass(frozen=True, eq=False)
class TokenisedRows:
    """The rows of one dataset as flat tensors.

    Attributes:
        tokens: of all rows, one after another, int32.
        labels: the same tokens, -100 where nothing is to be learned, int32.
        offsets: where each row begins, and the end, ``[rows + 1]``, int64.
        packed: rows share a sequence.
        max_seq_len: the bound at which rows were cut and up to which they are packed.
        num_bad: rows left out because they could not be used.
        num_cut: rows left out because ``max_seq_len`` cut their whole answer away.
        teacher: the same answers behind the teacher's own prompts, row for row, where it has such.
        teacher_ids: of each row, the number of the teacher that it follows, int32; None where all follow one.
        files: that the rows are from.
        origins: of each row, the number of its file and its own number there, ``[rows, 2]``, int32.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor
    packed: bool
    max_seq_len: int | None
    num_bad: int = 0
    num_cut: int = 0
    teacher: "TokenisedRows | None" = None
    teacher_ids: torch.Tensor | None = None
    files: tuple[str, ...] = ()
    origins: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Row:
        start, stop = self.offsets[row], self.offsets[row + 1]
        of_teacher = None if self.teacher is None else self.teacher[row]
        teacher_id = 0 if self.teacher_ids is None else int(self.teacher_ids[row])
        return Row(
            self.tokens[start:stop],
            self.labels[start:stop],
            None if of_teacher is None else of_teacher.tokens,
            None if of_teacher is None else of_teacher.labels,
            teacher_id,
        )

    def origin(self, row: int) -> str:
        """File and number of a row, as a user would look it up."""
        if self.origins is None:
            return f"row {row + 1}"
        file, number = self.origins[row].tolist()
        return f"{self.files[file]}, row {number}"

    @functools.cached_property
    def lengths(self) -> numpy.ndarray:
        """Tokens of each row."""
        return self.offsets.diff().numpy()

    @functools.cached_property
    def largest_token(self) -> int:
        """Of all rows, those that the teacher reads included."""
        return max(int(rows.tokens.max()) for rows in (self, self.teacher) if rows is not None)

    @functools.cached_property
    def supervised(self) -> numpy.ndarray:
        """Tokens to be learned in each row; its first token is never predicted."""
        learned = (self.labels != IGNORE_INDEX).numpy()
        starts = self.offsets[:-1].numpy()
        return numpy.add.reduceat(learned, starts, dtype=numpy.int64) - learned[starts]

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of all tokens and labels."""
        digest = hashlib.sha256()
        for tensor in (self.tokens, self.labels, self.offsets, self.teacher_ids):
            if tensor is not None:
                digest.update(tensor.contiguous().numpy().data)
        if self.teacher is not None:
            digest.update(self.teacher.fingerprint.encode())
        return digest.hexdigest()[:16]


def prepare_rows(
    component: DictConfig | ListConfig,
    tokenizer: Any,
    tokenizer_config: DictConfig,
    *,
    on_bad_row: str = "stop",
    reading: Reading = PLAIN_READING,
) -> tuple[list[TokenisedRows], list[float] | None]:
    """Read, check and tokenise one dataset component or a list of them.

    Args:
        component: a dataset of torchtune's or ours, or a list of such, each with an optional ``weight``.
        tokenizer: passed to the component; rows are cut at its ``max_seq_len`` here, not by it.
        tokenizer_config: what it was made from, part of the cache's key.
        on_bad_row: ``stop`` names the bad rows and ends; ``skip`` counts them and goes on.
        reading: what teacher and student read before the answer, and which teacher a row follows.

    Returns:
        The datasets, and their weights where they have any.

    Raises:
        UserError: a bad row, no row at all, ``packed`` without a length, prompts for rows without turns.
    """
    use_in_torchtune()
    entries = list(component) if isinstance(component, ListConfig) else [component]
    rows = [_prepare(entry, tokenizer, tokenizer_config, on_bad_row, reading) for entry in entries]
    weights = [float(entry["weight"]) for entry in entries if "weight" in entry]
    return rows, weights or None


def _prepare(
    entry: DictConfig, tokenizer: Any, tokenizer_config: DictConfig, on_bad_row: str, reading: Reading
) -> TokenisedRows:
    arguments = OmegaConf.create({key: value for key, value in entry.items() if key != "weight"})
    is_packed = bool(arguments.get("packed", False))
    max_seq_len = getattr(tokenizer, "max_seq_len", None)
    if "packed" in arguments:
        arguments["packed"] = False  # packing is the plan's, once lengths are known
    dataset = instantiate(arguments, tokenizer)
    max_seq_len = getattr(dataset, "max_seq_len", None) or max_seq_len
    if is_packed and max_seq_len is None:
        raise UserError("dataset.packed=True: needs a length to pack to; set tokenizer.max_seq_len")

    if not (reading.student.is_plain and reading.teacher.is_plain) and getattr(dataset, "messages", None) is None:
        raise UserError(
            f"dataset {_name(entry)}: student_prompt_template, teacher_prompt_template and teacher_system_prompt need "
            "rows with turns; take distill_tune.data.instruct or distill_tune.data.chat"
        )

    path = _cache_path(dataset, arguments, tokenizer_config, on_bad_row, max_seq_len, reading)
    rows = _read_cache(path)
    if rows is None:
        rows = _tokenise(dataset, tokenizer, on_bad_row, max_seq_len, reading)
        _write_cache(path, rows)
    if len(rows) == 0:
        cut = f" ({rows.num_cut} whose answer max_seq_len={max_seq_len} cuts away)" if rows.num_cut else ""
        raise UserError(f"dataset {_name(entry)}: has no row to train on{cut}")
    return dataclasses.replace(rows, packed=is_packed)


def _name(entry: DictConfig) -> str:
    return str(entry.get("data_files") or entry.get("source") or entry["_component_"])


def _tokenise(
    dataset: Any, tokenizer: Any, on_bad_row: str, max_seq_len: int | None, reading: Reading
) -> TokenisedRows:
    # The bound is applied here: torchtune's tokenizers would put an eos where a cut answer goes on.
    bound, tokenizer.max_seq_len = getattr(tokenizer, "max_seq_len", None), None
    try:
        chunks = list(_tokenised(_Source(dataset, tokenizer, max_seq_len, reading)))
    finally:
        tokenizer.max_seq_len = bound
    faults = [fault for chunk in chunks for fault in chunk.faults]
    if faults and on_bad_row == "stop":
        more = f"\n  and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        shown = "\n  ".join(f"{_origin(dataset, row)}: {fault}" for row, fault in faults[:_SHOWN_FAULTS])
        raise UserError(
            f"dataset: {len(faults)} bad rows; mend them, or leave them out with on_bad_row=skip\n  {shown}{more}"
        )

    def joined(arrays: Iterable[numpy.ndarray]) -> torch.Tensor:
        return torch.from_numpy(numpy.concatenate([numpy.zeros(0, numpy.int32), *arrays]))

    def rows(flat: Sequence[_Flat], **more: Any) -> TokenisedRows:
        ends = joined(part.lengths for part in flat).long().cumsum(0)
        return TokenisedRows(
            joined(part.tokens for part in flat),
            joined(part.labels for part in flat),
            torch.cat([torch.zeros(1, dtype=torch.int64), ends]),
            packed=False,
            max_seq_len=max_seq_len,
            **more,
        )

    places = [origin_of(dataset, index) for chunk in chunks for index in chunk.kept]
    files = list(dict.fromkeys(file for file, _ in places))
    number_of = {file: number for number, file in enumerate(files)}
    return rows(
        [chunk.student for chunk in chunks],
        files=tuple(files),
        origins=torch.tensor([(number_of[file], number) for file, number in places], dtype=torch.int32).view(-1, 2),
        num_bad=len(faults),
        num_cut=sum(chunk.num_cut for chunk in chunks),
        teacher=rows([chunk.teacher for chunk in chunks]) if reading.differs else None,
        teacher_ids=joined(chunk.teacher_ids for chunk in chunks) if reading.teacher_names else None,
    )


def _tokenised(source: "_Source") -> Iterator["_Chunk"]:
    """The rows' tokens, some hundred rows at a time, in order, with a progress bar."""
    from rich.progress import Progress

    count = len(source.dataset)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    show = not sys.stderr.isatty()
    with Progress(transient=True, disable=show) as progress, _workers(source, count) as run:
        task = progress.add_task("tokenising", total=count)
        done = 0
        try:
            for chunk in run(chunks):
                yield chunk
                progress.advance(task, len(chunks[done]))
                done += 1
        except concurrent.futures.process.BrokenProcessPool:
            first, last = chunks[done][0] + 1, chunks[-1][-1] + 1
            print(
                f"dataset: a worker that tokenised rows was killed, perhaps for want of memory; "
                f"rows {first} to {last} follow in one process",
                file=sys.stderr,
            )
            for indices in chunks[done:]:
                yield _tokenise_chunk(indices)
                progress.advance(task, len(indices))


@contextlib.contextmanager
def _workers(source: "_Source", count: int) -> Iterator[Any]:
    """A map over chunks of rows: in forked processes, which need no pickling of the dataset, or in this one."""
    global _source
    _source = source
    processes = min(os.cpu_count() or 1, count // (4 * _CHUNK))
    if processes < 2 or sys.platform != "linux":
        yield lambda chunks: map(_tokenise_chunk, chunks)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would warn about the fork
    gc.freeze()  # else the workers' collections touch, and so copy, every row
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield lambda chunks: pool.map(_tokenise_chunk, chunks)
    gc.unfreeze()


@dataclasses.dataclass(frozen=True)
class _Source:
    """A dataset and how its rows are read."""

    dataset: Any
    tokenizer: Any
    max_seq_len: int | None
    reading: Reading


_source: _Source


@dataclasses.dataclass
class _Flat:
    """Some rows as flat arrays, which travel between processes as plain bytes."""

    tokens: numpy.ndarray
    labels: numpy.ndarray
    lengths: numpy.ndarray

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> "_Flat":
        empty = numpy.zeros(0, numpy.int32)
        return cls(
            numpy.concatenate([empty, *(tokens for tokens, _ in rows)]),
            numpy.concatenate([empty, *(labels for _, labels in rows)]),
            numpy.array([len(tokens) for tokens, _ in rows], numpy.int32),
        )


@dataclasses.dataclass
class _Chunk:
    """What came of some rows; ``teacher`` and ``teacher_ids`` have rows where they are asked for."""

    student: _Flat
    teacher: _Flat
    teacher_ids: numpy.ndarray
    kept: list[int]
    faults: list[tuple[int, str]]
    num_cut: int


def _origin(dataset: Any, index: int) -> str:
    return "{}, row {}".format(*origin_of(dataset, index))


def _tokenise_chunk(indices: range) -> _Chunk:
    of_student, of_teacher, teacher_ids, kept, faults, num_cut = [], [], [], [], [], 0
    for index in indices:
        try:
            student = _read(index, _source.reading.student)
            if not _supervised(student[1]).any():
                raise RowError("no answer to learn from")
            teacher_id = _teacher_id(index)
            student, teacher = _cut(student, index)
        except RowError as error:
            faults.append((index, str(error)))
            continue
        if not _supervised(student[1]).any():
            num_cut += 1
            continue
        of_student.append(student)
        of_teacher.append(teacher)
        teacher_ids.append(teacher_id)
        kept.append(index)
    return _Chunk(
        _Flat.of(of_student),
        _Flat.of(of_teacher if _source.reading.differs else []),
        numpy.array(teacher_ids, numpy.int32),
        kept,
        faults,
        num_cut,
    )


def _read(index: int, prompt: Prompt) -> Tokens:
    """
    Raises:
        RowError: the row cannot be used.
    """
    try:
        row = read_behind(prompt, _source.dataset, _source.tokenizer, index)
        return numpy.asarray(row["tokens"], numpy.int32), numpy.asarray(row["labels"], numpy.int32)
    except KeyError as error:
        raise RowError(f"no field {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError, RuntimeError, OverflowError) as error:
        # A component's own check of the row, or a tokenizer that refuses its text.
        raise RowError(f"cannot be used: {' '.join(str(error).split()) or type(error).__name__}") from error


def _cut(student: Tokens, index: int) -> tuple[Tokens, Tokens]:
    """What student and teacher read of a row up to their bounds, with as much of the answer in both.

    Raises:
        RowError: the answer's tokens are others behind the teacher's prompt.
    """
    reading, bound = _source.reading, _source.max_seq_len
    cut_student = student[0][:bound], student[1][:bound]
    if not reading.differs:
        return cut_student, cut_student
    teacher = _read(index, reading.teacher)
    answer, same = (_supervised(labels) for _, labels in (student, teacher))
    if len(answer) != len(same) or (answer != same).any():
        first = next((at for at, (mine, its) in enumerate(zip(answer, same, strict=False)) if mine != its), None)
        where = f"they differ from token {first + 1} on" if first is not None else "one of them goes on"
        raise RowError(
            f"the answer has {len(answer)} tokens behind the student's prompt and {len(same)} behind the teacher's: "
            f"{where}; both must read the same answer"
        )
    bound = reading.teacher_max_seq_len or bound
    cut_teacher = teacher[0][:bound], teacher[1][:bound]
    shared = min(len(_supervised(labels)) for _, labels in (cut_student, cut_teacher))
    return _up_to(cut_student, shared), _up_to(cut_teacher, shared)


def _supervised(labels: numpy.ndarray) -> numpy.ndarray:
    """The labels that are predicted: a row's first token never is."""
    return labels[1:][labels[1:] != IGNORE_INDEX]


def _up_to(row: Tokens, count: int) -> Tokens:
    """A row up to its so manieth supervised token."""
    supervised = (row[1][1:] != IGNORE_INDEX).nonzero()[0]
    if count == len(supervised):
        return row
    end = int(supervised[count]) + 1
    return row[0][:end], row[1][:end]


def _teacher_id(index: int) -> int:
    """
    Raises:
        RowError: the row names no teacher that there is.
    """
    names = _source.reading.teacher_names
    if not names:
        return 0
    row = getattr(_source.dataset, "_data", _source.dataset)[index]
    found = str(row.get("teacher_id"))
    if found not in names:
        raise RowError(f"teacher_id is {found}; teacher_model has {', '.join(names)}")
    return names.index(found)


def _cache_path(
    dataset: Any,
    arguments: DictConfig,
    tokenizer_config: DictConfig,
    on_bad_row: str,
    max_seq_len: int | None,
    reading: Reading,
) -> Path | None:
    """Where the tokens of exactly these rows under these settings are kept; None where nothing identifies them."""
    fingerprint = fingerprint_of(dataset)
    if fingerprint is None:
        return None
    files = {
        key: hashlib.sha256(Path(value).read_bytes()).hexdigest()
        for key, value in sorted(_strings(tokenizer_config))
        if Path(value).is_file()
    }
    for key, value in sorted(_strings(tokenizer_config)):
        if Path(value).is_dir():
            files |= {
                f"{key}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
                for file in sorted(Path(value).iterdir())
                if file.suffix in (".json", ".model", ".jinja", ".txt")
            }
    identity = {
        "rows": fingerprint,
        "dataset": OmegaConf.to_container(arguments),
        "tokenizer": OmegaConf.to_container(tokenizer_config),
        "files": files,
        "on_bad_row": on_bad_row,
        "max_seq_len": max_seq_len,
        "reading": dataclasses.asdict(reading),
        "versions": [
            distill_tune.__version__,
            *(version(name) for name in ("torchtune", "tokenizers", "sentencepiece")),
        ],
    }
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    return cache_folder() / "rows" / f"{name}.safetensors"


def cache_folder() -> Path:
    """DISTILL_TUNE_CACHE, or ~/.cache/distill_tune."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DISTILL_TUNE_CACHE") or Path(root) / "distill_tune")


def _strings(config: DictConfig) -> list[tuple[str, str]]:
    return [(str(key), value) for key, value in config.items() if isinstance(value, str) and len(value) < 4096]


_TENSORS = ("tokens", "labels", "offsets")
_SETTINGS = ("packed", "max_seq_len", "num_bad", "num_cut", "files")


def _read_cache(path: Path | None) -> TokenisedRows | None:
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            settings = json.loads(file.metadata()["settings"])
        of_teacher = {name: tensors.pop(f"teacher.{name}") for name in _TENSORS if f"teacher.{name}" in tensors}
        plain = {"packed": False, "max_seq_len": settings["max_seq_len"]}
        teacher = TokenisedRows(**of_teacher, **plain) if of_teacher else None
        return TokenisedRows(**tensors, **settings, teacher=teacher)
    except (SafetensorError, KeyError, TypeError, OSError):
        return None  # torn: made anew


def _write_cache(path: Path | None, rows: TokenisedRows) -> None:
    if path is None or len(rows) == 0:
        return
    settings = {name: getattr(rows, name) for name in _SETTINGS}
    tensors = {name: getattr(rows, name) for name in _TENSORS}
    if rows.teacher is not None:
        tensors |= {f"teacher.{name}": getattr(rows.teacher, name) for name in _TENSORS}
    if rows.teacher_ids is not None:
        tensors["teacher_ids"] = rows.teacher_ids
    if rows.origins is not None:
        tensors["origins"] = rows.origins
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file(tensors, Path(folder) / path.name, metadata={"settings": json.dumps(settings)})
            os.replace(Path(folder) / path.name, path)
    except OSError as error:
        print(f"the tokenised rows could not be kept in {path.parent}: {error}", file=sys.stderr)


def describe_rows(datasets: Sequence[TokenisedRows]) -> str:
    """One line for the log: how many rows and tokens, and what was left out."""
    rows, tokens = sum(map(len, datasets)), sum(len(data.tokens) for data in datasets)
    supervised = sum(int(data.supervised.sum()) for data in datasets)
    line = f"{rows:,} rows, {tokens:,} tokens, {supervised:,} of them supervised"
    if bad := sum(data.num_bad for data in datasets):
        line += f"; {bad:,} bad rows left out"
    if cut := sum(data.num_cut for data in datasets):
        line += f"; {cut:,} rows left out whose answer max_seq_len cuts away"
    return line
