"""Rows to tokens, once: read, checked and tokenised in parallel before any model loads, then kept in a cache."""

import concurrent.futures.process
import contextlib
import dataclasses
import gc
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.components import instantiate
from distill_tune.counts import counted
from distill_tune.cpus import usable_cpus
from distill_tune.data import row_cache
from distill_tune.data.asked import asked_tokens
from distill_tune.data.conversation import Tokens
from distill_tune.data.datasets import IGNORE_INDEX, read_behind
from distill_tune.data.prompts import PLAIN_READING, Prompt, Reading
from distill_tune.data.sources import NoAnswer, RowError, origin_of, require_unchanged, use_in_torchtune
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.data.turn_text import text_of_turns
from distill_tune.errors import UserError, one_line

_CHUNK = 256  # rows that a worker takes at a time
_SHOWN_FAULTS = 5


def prepare_rows(
    component: DictConfig | ListConfig,
    tokenizer: Any,
    tokenizer_config: DictConfig,
    *,
    key: str = "dataset",
    on_bad_row: str = "stop",
    reading: Reading = PLAIN_READING,
    check_kept: bool = True,
) -> tuple[list[TokenisedRows], list[float] | None]:
    """Read, check and tokenise one dataset component or a list of them.

    Args:
        component: a dataset of torchtune's or ours, or a list of such, each with an optional ``weight``.
        tokenizer: passed to the component; rows are cut at its ``max_seq_len`` here, not by it.
        tokenizer_config: what it was made from, part of the cache's key.
        key: of the config that names the component.
        on_bad_row: ``stop`` names the bad rows and ends; ``skip`` counts them and goes on.
        reading: what teacher and student read before the answer, and which teacher a row follows.
        check_kept: compare tokens that an earlier start has kept with their checksum; another process may have.

    Returns:
        The datasets, and their weights where they have any.

    Raises:
        UserError: a bad row, no row at all, ``packed`` without a length, prompts for rows without turns.
    """
    use_in_torchtune()
    entries = list(component) if isinstance(component, ListConfig) else [component]
    rows = [_prepare(entry, tokenizer, tokenizer_config, key, on_bad_row, reading, check_kept) for entry in entries]
    weights = [float(entry["weight"]) for entry in entries if "weight" in entry]
    return rows, weights or None


def _prepare(
    entry: DictConfig,
    tokenizer: Any,
    tokenizer_config: DictConfig,
    key: str,
    on_bad_row: str,
    reading: Reading,
    check_kept: bool,
) -> TokenisedRows:
    arguments = OmegaConf.create({key: value for key, value in entry.items() if key != "weight"})
    is_packed = bool(arguments.get("packed", False))
    max_seq_len = getattr(tokenizer, "max_seq_len", None)
    if "packed" in arguments:
        arguments["packed"] = False  # packing is the plan's, once lengths are known
    try:
        dataset = instantiate(arguments, tokenizer)
    except UserError:
        raise
    except Exception as error:  # of a user's own component
        raise UserError(f"dataset {_name(entry)}: {one_line(error)}") from error
    max_seq_len = getattr(dataset, "max_seq_len", None) or max_seq_len
    if is_packed and max_seq_len is None:
        raise UserError("dataset.packed=True: needs a length to pack to; set tokenizer.max_seq_len")

    if not (reading.student.is_plain and reading.teacher.is_plain) and getattr(dataset, "conversation", None) is None:
        raise UserError(
            f"dataset {_name(entry)}: student_prompt_template, teacher_prompt_template and teacher_system_prompt need "
            "rows with turns; take distill_tune.data.instruct or distill_tune.data.chat"
        )

    kept = row_cache.folder_of(dataset, arguments, tokenizer_config, max_seq_len, reading)
    rows = row_cache.read_rows(kept, check_kept) if kept else None
    if rows is None:
        rows = _tokenise(dataset, tokenizer, max_seq_len, reading)
        require_unchanged(dataset)
        if kept and len(rows):
            row_cache.write_rows(kept, rows)
    else:
        print(f"dataset {_name(entry)}: was tokenised before, the tokens are taken from {kept}")
    if rows.num_bad and on_bad_row == "stop":
        raise UserError(
            f"{key}: {counted(rows.num_bad, 'bad row')}; mend what is told, or leave such out with on_bad_row=skip"
            f"{_shown_faults(rows)}"
        )
    if len(rows) == 0:
        cut = (
            f" ({rows.num_cut} whose answer max_seq_len={max_seq_len} cuts away: raise tokenizer.max_seq_len, or "
            "shorten what stands before the answers)"
            if rows.num_cut
            else ""
        )
        raise UserError(f"dataset {_name(entry)}: has no row to train on{cut}{_shown_faults(rows)}")
    return dataclasses.replace(rows, packed=is_packed).with_fingerprint(rows.fingerprint)


def _name(entry: DictConfig) -> str:
    return str(entry.get("data_files") or entry.get("source") or entry["_component_"])


def _shown_faults(rows: TokenisedRows) -> str:
    more = [f"and {rows.num_bad - len(rows.faults)} more"] if rows.num_bad > len(rows.faults) else []
    return "".join(f"\n  {line}" for line in (*rows.faults, *more))


def _tokenise(dataset: Any, tokenizer: Any, max_seq_len: int | None, reading: Reading) -> TokenisedRows:
    # The bound is applied here: torchtune's tokenizers would put an eos where a cut answer goes on.
    bound, tokenizer.max_seq_len = getattr(tokenizer, "max_seq_len", None), None
    try:
        chunks = list(_tokenised(_Source(dataset, tokenizer, max_seq_len, reading)))
    finally:
        tokenizer.max_seq_len = bound
    faults = [fault for chunk in chunks for fault in chunk.faults]

    def joined(arrays: Iterable[numpy.ndarray], dtype: type = numpy.int32) -> torch.Tensor:
        return torch.from_numpy(numpy.concatenate([numpy.zeros(0, dtype), *arrays]))

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

    told = [chunk.student.is_text for chunk in chunks if chunk.student.is_text is not None]
    places = [origin_of(dataset, index) for chunk in chunks for index in chunk.kept]
    files = list(dict.fromkeys(file for file, _ in places))
    number_of = {file: number for number, file in enumerate(files)}
    return rows(
        [chunk.student for chunk in chunks],
        files=tuple(files),
        origins=torch.tensor([(number_of[file], number) for file, number in places], dtype=torch.int32).view(-1, 2),
        num_bad=len(faults),
        faults=tuple(f"{_origin(dataset, row)}: {fault}" for row, fault in faults[:_SHOWN_FAULTS]),
        **sum((chunk.counts for chunk in chunks), Counter()),
        dropped=dict(sum((chunk.dropped for chunk in chunks), Counter())),
        unread=dict(sum((chunk.unread for chunk in chunks), Counter())),
        teacher=rows([chunk.teacher for chunk in chunks]) if reading.differs else None,
        teacher_ids=joined(chunk.teacher_ids for chunk in chunks) if reading.teacher_names else None,
        is_text=joined(told, bool) if reading.augmented and len(told) == len(chunks) else None,
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
    processes = min(usable_cpus(), count // (4 * _CHUNK))
    try:
        if processes < 2 or sys.platform != "linux":
            yield lambda chunks: map(_tokenise_chunk, chunks)
            return
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would warn about the fork
        gc.freeze()  # else the workers' collections touch, and so copy, every row
        context = multiprocessing.get_context("fork")
        with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
            yield lambda chunks: pool.map(_tokenise_chunk, chunks)
        gc.unfreeze()
    finally:
        del _source  # the rows, which the run needs no more


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
    """Some rows as flat arrays, which travel between processes as plain bytes; ``is_text`` where every row tells."""

    tokens: numpy.ndarray
    labels: numpy.ndarray
    lengths: numpy.ndarray
    is_text: numpy.ndarray | None

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> "_Flat":
        empty = numpy.zeros(0, numpy.int32)
        told = [row.is_text for row in rows if row.is_text is not None]
        return cls(
            numpy.concatenate([empty, *(row.tokens for row in rows)]),
            numpy.concatenate([empty, *(row.labels for row in rows)]),
            numpy.array([len(row.tokens) for row in rows], numpy.int32),
            numpy.concatenate([numpy.zeros(0, bool), *told]) if len(told) == len(rows) else None,
        )


@dataclasses.dataclass
class _Chunk:
    """What came of some rows; ``teacher`` and ``teacher_ids`` have rows where they are asked for."""

    student: _Flat
    teacher: _Flat
    teacher_ids: numpy.ndarray
    kept: list[int]
    faults: list[tuple[int, str]]
    counts: Counter[str]
    dropped: Counter[str]
    unread: Counter[str]


def _origin(dataset: Any, index: int) -> str:
    return "{}, row {}".format(*origin_of(dataset, index))


def _tokenise_chunk(indices: range) -> _Chunk:
    of_student, of_teacher, teacher_ids, kept, faults = [], [], [], [], []
    counts, dropped, unread = Counter[str](), Counter[str](), Counter[str]()
    for index in indices:
        try:
            whole = _read_or_asked(index, _source.reading.student)
            asks_alone = not _supervised(whole.labels).any()
            if asks_alone and not _source.reading.prompts_alone:
                raise RowError("no answer to learn from")
            teacher_id = _teacher_id(index)
            student, teacher = _cut(whole, index)
        except RowError as error:
            faults.append((index, str(error)))
            continue
        learned, num_cut = len(_supervised(student.labels)), len(whole.tokens) - len(student.tokens)
        if num_cut if asks_alone else not learned:
            counts["num_cut"] += 1
            continue
        counts["num_tokens_cut"] += num_cut
        counts["num_shortened"] += num_cut > 0
        counts["num_without_end"] += learned < len(_supervised(whole.labels))
        counts["num_empty"] += whole.num_empty
        counts["num_unfinished"] += whole.is_cut
        dropped.update(whole.dropped)
        unread.update(_unread(index))
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
        counts,
        dropped,
        unread,
    )


def _read_or_asked(index: int, prompt: Prompt) -> Tokens:
    """A row, or its prompt where it has no answer and prompts are asked for.

    Raises:
        RowError: the row cannot be used.
    """
    asked = getattr(_source.dataset, "asked", None)
    try:
        return _read(index, prompt)
    except NoAnswer:
        if asked is None or not _source.reading.prompts_alone:
            raise
    row = _source.dataset.rows[index]
    tokens = numpy.asarray(asked_tokens(_source.tokenizer, asked(row), prompt, row), numpy.int32)
    return Tokens(tokens, numpy.full_like(tokens, IGNORE_INDEX))


def _read(index: int, prompt: Prompt) -> Tokens:
    """
    Raises:
        RowError: the row cannot be used.
    """
    dataset, tokenizer = _source.dataset, _source.tokenizer
    try:
        row = read_behind(prompt, dataset, tokenizer, index)
        tokens, labels = (numpy.asarray(row[name], numpy.int32) for name in ("tokens", "labels"))
        is_text = row.get("is_text") if _source.reading.augmented else None
        if is_text is None and _source.reading.augmented and getattr(dataset, "conversation", None):
            conversation = prompt.applied(dataset.conversation(dataset.rows[index]), dataset.rows[index])
            is_text = text_of_turns(tokenizer, conversation, tokens)
        dropped, num_empty = tuple(row.get("dropped", ())), int(row.get("num_empty", 0))
        return Tokens(tokens, labels, is_text, dropped, num_empty, bool(row.get("is_cut", False)))
    except KeyError as error:
        raise RowError(f"no field {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError, RuntimeError, OverflowError) as error:
        # A component's own check of the row, or a tokenizer that refuses its text.
        raise RowError(f"cannot be used: {' '.join(str(error).split()) or type(error).__name__}") from error


def _unread(index: int) -> set[str]:
    """What of a row nobody reads, as far as its dataset tells."""
    unread = getattr(_source.dataset, "unread", None)
    return set(unread(_source.dataset.rows[index])) - _source.reading.columns if unread else set()


def _cut(student: Tokens, index: int) -> tuple[Tokens, Tokens]:
    """What student and teacher read of a row up to their bounds, with as much of the answer in both.

    Raises:
        RowError: the answer's tokens are others behind the teacher's prompt.
    """
    reading, bound = _source.reading, _source.max_seq_len
    cut_student = _first(student, bound)
    if not reading.differs:
        return cut_student, cut_student
    teacher = _read_or_asked(index, reading.teacher)
    answer, same = (_supervised(row.labels) for row in (student, teacher))
    if len(answer) != len(same) or (answer != same).any():
        first = next((at for at, (mine, its) in enumerate(zip(answer, same, strict=False)) if mine != its), None)
        where = f"they differ from token {first + 1} on" if first is not None else "one of them goes on"
        raise RowError(
            f"the answer has {len(answer)} tokens behind the student's prompt and {len(same)} behind the teacher's: "
            f"{where}; both must read the same answer"
        )
    cut_teacher = _first(teacher, reading.teacher_max_seq_len or bound)
    if not len(answer) and len(cut_teacher.tokens) < len(teacher.tokens):
        raise RowError(f"the teacher's prompt has {len(teacher.tokens)} tokens, more than it reads")
    shared = min(len(_supervised(row.labels)) for row in (cut_student, cut_teacher))
    return _up_to(cut_student, shared), _up_to(cut_teacher, shared)


def _first(row: Tokens, count: int | None) -> Tokens:
    """A row's first so many tokens; all of them without a number."""
    is_text = None if row.is_text is None else row.is_text[:count]
    return row._replace(tokens=row.tokens[:count], labels=row.labels[:count], is_text=is_text)


def _supervised(labels: numpy.ndarray) -> numpy.ndarray:
    """The labels that are predicted: a row's first token never is."""
    return labels[1:][labels[1:] != IGNORE_INDEX]


def _up_to(row: Tokens, count: int) -> Tokens:
    """A row up to its so manieth supervised token."""
    supervised = (row.labels[1:] != IGNORE_INDEX).nonzero()[0]
    return row if count == len(supervised) else _first(row, int(supervised[count]) + 1)


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
