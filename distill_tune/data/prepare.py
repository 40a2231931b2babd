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

from distill_tune.alignment.rows import RowAlignment, align
from distill_tune.config.components import instantiate
from distill_tune.counts import counted
from distill_tune.cpus import usable_cpus
from distill_tune.data import row_cache
from distill_tune.data.asked import asked_tokens
from distill_tune.data.conversation import Tokens, without_bounds
from distill_tune.data.cut_rows import Read, cut_to_bounds, supervised
from distill_tune.data.datasets import IGNORE_INDEX, TokenisedDataset, read_behind
from distill_tune.data.other_tokenizer import OtherTokenizer, told_of_teacher
from distill_tune.data.prompts import PLAIN_READING, Prompt, Reading
from distill_tune.data.sources import NoAnswer, RowError, origin_of, require_unchanged, use_in_torchtune
from distill_tune.data.tokenised_rows import AlignedRows, TokenisedRows
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
    others: Sequence[OtherTokenizer] = (),
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
        others: tokenizers of teachers that are not that of the rows: each row is written by each of them, too.
        check_kept: compare tokens that an earlier start has kept with their checksum; another process may have.

    Returns:
        The datasets, and their weights where they have any.

    Raises:
        UserError: a bad row, no row at all, ``packed`` without a length, prompts for rows without turns.
    """
    use_in_torchtune()
    entries = list(component) if isinstance(component, ListConfig) else [component]
    rows = [
        _prepare(entry, tokenizer, tokenizer_config, key, on_bad_row, reading, others, check_kept) for entry in entries
    ]
    weights = [float(entry["weight"]) for entry in entries if "weight" in entry]
    return rows, weights or None


def _prepare(
    entry: DictConfig,
    tokenizer: Any,
    tokenizer_config: DictConfig,
    key: str,
    on_bad_row: str,
    reading: Reading,
    others: Sequence[OtherTokenizer],
    check_kept: bool,
) -> TokenisedRows:
    arguments = OmegaConf.create({key: value for key, value in entry.items() if key != "weight"})
    is_packed = bool(arguments.get("packed", False))
    if "packed" in arguments:
        arguments["packed"] = False  # packing is the plan's, once lengths are known
    dataset = build_dataset(entry, arguments, tokenizer)
    max_seq_len = getattr(dataset, "max_seq_len", None) or getattr(tokenizer, "max_seq_len", None)
    if is_packed and max_seq_len is None:
        raise UserError("dataset.packed=True: needs a length to pack to; set tokenizer.max_seq_len")

    require_turns(entry, dataset, [reading.student, reading.teacher])

    kept = row_cache.folder_of(dataset, arguments, tokenizer_config, max_seq_len, reading, others)
    rows = row_cache.read_rows(kept, check_kept) if kept else None
    if rows is None:
        of_others = [
            _Other(
                over_the_same_rows(dataset, build_dataset(entry, arguments, other.tokenizer)),
                other,
                reading.teacher_max_seq_len or getattr(other.tokenizer, "max_seq_len", None),
            )
            for other in others
        ]
        rows = _tokenise(_Source(dataset, tokenizer, max_seq_len, reading, of_others))
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


def build_dataset(entry: DictConfig, arguments: DictConfig, tokenizer: Any) -> Any:
    """
    Args:
        entry: of a config.
        arguments: those of the component in it.

    Raises:
        UserError: it refuses its arguments, or has no rows.
    """
    try:
        return instantiate(arguments, tokenizer)
    except UserError:
        raise
    except Exception as error:  # of a user's own component
        raise UserError(f"dataset {_name(entry)}: {one_line(error)}") from error


def require_turns(entry: DictConfig, dataset: Any, prompts: Sequence[Prompt]) -> None:
    """
    Args:
        entry: of a config, that ``dataset`` is built of.

    Raises:
        UserError: something is to be written around turns, and the rows have none.
    """
    if not all(prompt.is_plain for prompt in prompts) and getattr(dataset, "conversation", None) is None:
        raise UserError(
            f"dataset {_name(entry)}: student_prompt_template, teacher_prompt_template and teacher_system_prompt need "
            "rows with turns; take distill_tune.data.instruct or distill_tune.data.chat"
        )


def over_the_same_rows(dataset: Any, read_again: Any) -> Any:
    """A dataset for another tokenizer, over the rows that are there already where it is one of ours."""
    is_ours = isinstance(read_again, TokenisedDataset)
    return dataclasses.replace(read_again, rows=dataset.rows) if is_ours else read_again


def source_of(entry: DictConfig) -> str:
    """Where a dataset's rows come from: what its ``source`` names, or who makes them."""
    return str(entry.get("source") or entry["_component_"])


def _name(entry: DictConfig) -> str:
    return str(entry.get("data_files") or source_of(entry))


def _shown_faults(rows: TokenisedRows) -> str:
    more = [f"and {rows.num_bad - len(rows.faults)} more"] if rows.num_bad > len(rows.faults) else []
    return "".join(f"\n  {line}" for line in (*rows.faults, *more))


def _tokenise(source: "_Source") -> TokenisedRows:
    dataset, max_seq_len, reading = source.dataset, source.max_seq_len, source.reading
    with without_bounds([source.tokenizer, *(other.by.tokenizer for other in source.others)]):  # applied here
        chunks = list(_tokenised(source))
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
        others=tuple(
            rows([chunk.others[number].rows for chunk in chunks], alignment=_alignment(chunks, number))
            for number in range(len(source.others))
        ),
        is_text=joined(told, bool) if reading.augmented and len(told) == len(chunks) else None,
    )


def _alignment(chunks: Sequence["_Chunk"], number: int) -> AlignedRows:
    found = [chunk.others[number] for chunk in chunks]
    lengths = numpy.concatenate([numpy.zeros(1, numpy.int64), *(chunk.student.num_learned for chunk in chunks)])
    return AlignedRows(
        torch.from_numpy(numpy.concatenate([numpy.zeros((0, 6), numpy.int32), *(of.positions for of in found)])),
        torch.from_numpy(lengths.cumsum()),
        sum(of.num_bytes for of in found),
        sum(of.num_masked_bytes for of in found),
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
    others: Sequence["_Other"]


@dataclasses.dataclass(frozen=True)
class _Other:
    """The same rows by a teacher's own tokenizer, and where they are cut."""

    dataset: Any
    by: OtherTokenizer
    bound: int | None


_source: _Source


@dataclasses.dataclass
class _Flat:
    """Some rows as flat arrays, which travel between processes as plain bytes; ``is_text`` where every row tells."""

    tokens: numpy.ndarray
    labels: numpy.ndarray
    lengths: numpy.ndarray
    is_text: numpy.ndarray | None
    num_learned: numpy.ndarray

    @classmethod
    def of(cls, rows: Sequence[Tokens]) -> "_Flat":
        empty = numpy.zeros(0, numpy.int32)
        told = [row.is_text for row in rows if row.is_text is not None]
        return cls(
            numpy.concatenate([empty, *(row.tokens for row in rows)]),
            numpy.concatenate([empty, *(row.labels for row in rows)]),
            numpy.array([len(row.tokens) for row in rows], numpy.int32),
            numpy.concatenate([numpy.zeros(0, bool), *told]) if len(told) == len(rows) else None,
            numpy.array([len(supervised(row.labels)) for row in rows], numpy.int64),
        )


@dataclasses.dataclass
class _FlatOther:
    """Some rows as a teacher of another tokenizer reads them."""

    rows: _Flat
    positions: numpy.ndarray
    num_bytes: int
    num_masked_bytes: int

    @classmethod
    def of(cls, read: Sequence[tuple[Tokens, RowAlignment]]) -> "_FlatOther":
        alignments = [alignment for _, alignment in read]
        return cls(
            _Flat.of([tokens for tokens, _ in read]),
            numpy.concatenate([numpy.zeros((0, 6), numpy.int32), *(found.positions for found in alignments)]),
            sum(found.num_bytes for found in alignments),
            sum(found.num_masked_bytes for found in alignments),
        )


@dataclasses.dataclass
class _Chunk:
    """What came of some rows; ``teacher``, ``others`` and ``teacher_ids`` have rows where they are asked for."""

    student: _Flat
    teacher: _Flat
    others: Sequence[_FlatOther]
    teacher_ids: numpy.ndarray
    kept: list[int]
    faults: list[tuple[int, str]]
    counts: Counter[str]
    dropped: Counter[str]
    unread: Counter[str]


def _origin(dataset: Any, index: int) -> str:
    return "{}, row {}".format(*origin_of(dataset, index))


def _tokenise_chunk(indices: range) -> _Chunk:
    read, teacher_ids, kept, faults = list[Read](), [], [], []
    counts, dropped, unread = Counter[str](), Counter[str](), Counter[str]()
    for index in indices:
        try:
            whole = _read_or_asked(index, _source.reading.student, _source.dataset, _source.tokenizer)
            asks_alone = not len(supervised(whole.labels))
            if asks_alone and not _source.reading.prompts_alone:
                raise RowError("no answer to learn from")
            teacher_id = _teacher_id(index)
            cut = _cut(whole, index)
        except RowError as error:
            faults.append((index, str(error)))
            continue
        learned, num_cut = len(supervised(cut.student.labels)), len(whole.tokens) - len(cut.student.tokens)
        if num_cut if asks_alone else not learned:
            counts["num_cut"] += 1
            continue
        counts["num_tokens_cut"] += num_cut
        counts["num_shortened"] += num_cut > 0
        counts["num_without_end"] += learned < len(supervised(whole.labels))
        counts["num_empty"] += whole.num_empty
        counts["num_unfinished"] += whole.is_cut
        dropped.update(whole.dropped)
        unread.update(_unread(index))
        read.append(cut)
        teacher_ids.append(teacher_id)
        kept.append(index)
    return _Chunk(
        _Flat.of([row.student for row in read]),
        _Flat.of([row.teacher for row in read] if _source.reading.differs else []),
        [_FlatOther.of([row.others[number] for row in read]) for number in range(len(_source.others))],
        numpy.array(teacher_ids, numpy.int32),
        kept,
        faults,
        counts,
        dropped,
        unread,
    )


def _read_or_asked(index: int, prompt: Prompt, dataset: Any, tokenizer: Any) -> Tokens:
    """A row, or its prompt where it has no answer and prompts are asked for.

    Raises:
        RowError: the row cannot be used.
    """
    asked = getattr(dataset, "asked", None)
    try:
        return _read(index, prompt, dataset, tokenizer)
    except NoAnswer:
        if asked is None or not _source.reading.prompts_alone:
            raise
    row = dataset.rows[index]
    tokens = numpy.asarray(asked_tokens(tokenizer, asked(row), prompt, row), numpy.int32)
    return Tokens(tokens, numpy.full_like(tokens, IGNORE_INDEX))


def _read(index: int, prompt: Prompt, dataset: Any, tokenizer: Any) -> Tokens:
    """
    Raises:
        RowError: the row cannot be used.
    """
    with row_errors():
        row = read_behind(prompt, dataset, tokenizer, index)
        tokens, labels = (numpy.asarray(row[name], numpy.int32) for name in ("tokens", "labels"))
        is_text = row.get("is_text") if _source.reading.augmented else None
        if is_text is None and _source.reading.augmented and getattr(dataset, "conversation", None):
            conversation = prompt.applied(dataset.conversation(dataset.rows[index]), dataset.rows[index])
            is_text = text_of_turns(tokenizer, conversation, tokens)
        dropped, num_empty = tuple(row.get("dropped", ())), int(row.get("num_empty", 0))
        return Tokens(tokens, labels, is_text, dropped, num_empty, bool(row.get("is_cut", False)))


@contextlib.contextmanager
def row_errors() -> Iterator[None]:
    """Have what a component or a tokenizer raises of a row tell that the row cannot be used.

    Raises:
        RowError: it cannot.
    """
    try:
        yield
    except KeyError as error:
        raise RowError(f"no field {error.args[0]}") from error
    except (TypeError, ValueError, AttributeError, AssertionError, LookupError, RuntimeError, OverflowError) as error:
        # A component's own check of the row, or a tokenizer that refuses its text.
        raise RowError(f"cannot be used: {' '.join(str(error).split()) or type(error).__name__}") from error


def _unread(index: int) -> set[str]:
    """What of a row nobody reads, as far as its dataset tells."""
    unread = getattr(_source.dataset, "unread", None)
    return set(unread(_source.dataset.rows[index])) - _source.reading.columns if unread else set()


def _cut(student: Tokens, index: int) -> Read:
    """What student and teachers read of a row up to their bounds, with as much of the answer in each.

    Raises:
        RowError: the answer's tokens are others behind the teacher's prompt, where its tokenizer is the same.
    """
    reading, bound = _source.reading, _source.max_seq_len
    teacher = student
    if reading.differs:
        teacher = _read_or_asked(index, reading.teacher, _source.dataset, _source.tokenizer)
        _require_same_answer(supervised(student.labels), supervised(teacher.labels))
    others = []
    for other in _source.others:
        with told_of_teacher():
            its = _read_or_asked(index, reading.teacher, other.dataset, other.by.tokenizer)
        others.append((its, align(student, its, other.by.rows_bytes, other.by.its_bytes)))
    bounds = [other.bound for other in _source.others]
    return cut_to_bounds(Read(student, teacher, others), bound, reading.teacher_max_seq_len or bound, bounds)


def _require_same_answer(answer: numpy.ndarray, same: numpy.ndarray) -> None:
    """
    Raises:
        RowError: it is not, behind the teacher's prompt.
    """
    if len(answer) == len(same) and (answer == same).all():
        return
    first = next((at for at, (mine, its) in enumerate(zip(answer, same, strict=False)) if mine != its), None)
    where = f"they differ from token {first + 1} on" if first is not None else "one of them goes on"
    raise RowError(
        f"the answer has {len(answer)} tokens behind the student's prompt and {len(same)} behind the teacher's: "
        f"{where}; both must read the same answer"
    )


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
