"""Rows to tokens, once: read, checked and tokenised in parallel before any model loads, then kept in a cache."""

import concurrent.futures
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
from collections.abc import Iterator, Sequence
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
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.data.sources import RowError, fingerprint_of, origin_of, use_in_torchtune
from distill_tune.errors import UserError

_CHUNK = 256  # rows that a worker takes at a time
_SHOWN_FAULTS = 5


@dataclasses.dataclass(frozen=True)
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
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    offsets: torch.Tensor
    packed: bool
    max_seq_len: int | None
    num_bad: int = 0
    num_cut: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        start, stop = self.offsets[row], self.offsets[row + 1]
        return self.tokens[start:stop], self.labels[start:stop]

    @functools.cached_property
    def lengths(self) -> numpy.ndarray:
        """Tokens of each row."""
        return self.offsets.diff().numpy()

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
        for tensor in (self.tokens, self.labels, self.offsets):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:16]


def prepare_rows(
    component: DictConfig | ListConfig, tokenizer: Any, tokenizer_config: DictConfig, *, on_bad_row: str = "stop"
) -> tuple[list[TokenisedRows], list[float] | None]:
    """Read, check and tokenise one dataset component or a list of them.

    Args:
        component: a dataset of torchtune's or ours, or a list of such, each with an optional ``weight``.
        tokenizer: passed to the component; rows are cut at its ``max_seq_len`` here, not by it.
        tokenizer_config: what it was made from, part of the cache's key.
        on_bad_row: ``stop`` names the bad rows and ends; ``skip`` counts them and goes on.

    Returns:
        The datasets, and their weights where they have any.

    Raises:
        UserError: a bad row, no row at all, ``packed`` without a length.
    """
    use_in_torchtune()
    entries = list(component) if isinstance(component, ListConfig) else [component]
    rows = [_prepare(entry, tokenizer, tokenizer_config, on_bad_row) for entry in entries]
    weights = [float(entry["weight"]) for entry in entries if "weight" in entry]
    return rows, weights or None


def _prepare(entry: DictConfig, tokenizer: Any, tokenizer_config: DictConfig, on_bad_row: str) -> TokenisedRows:
    arguments = OmegaConf.create({key: value for key, value in entry.items() if key != "weight"})
    is_packed = bool(arguments.get("packed", False))
    max_seq_len = getattr(tokenizer, "max_seq_len", None)
    if "packed" in arguments:
        arguments["packed"] = False  # packing is the plan's, once lengths are known
    dataset = instantiate(arguments, tokenizer)
    max_seq_len = getattr(dataset, "max_seq_len", None) or max_seq_len
    if is_packed and max_seq_len is None:
        raise UserError("dataset.packed=True: needs a length to pack to; set tokenizer.max_seq_len")

    path = _cache_path(dataset, arguments, tokenizer_config, on_bad_row, max_seq_len)
    rows = _read_cache(path)
    if rows is None:
        rows = _tokenise(dataset, tokenizer, on_bad_row, max_seq_len)
        _write_cache(path, rows)
    if len(rows) == 0:
        cut = f" ({rows.num_cut} whose answer max_seq_len={max_seq_len} cuts away)" if rows.num_cut else ""
        raise UserError(f"dataset {_name(entry)}: has no row to train on{cut}")
    return dataclasses.replace(rows, packed=is_packed)


def _name(entry: DictConfig) -> str:
    return str(entry.get("data_files") or entry.get("source") or entry["_component_"])


def _tokenise(dataset: Any, tokenizer: Any, on_bad_row: str, max_seq_len: int | None) -> TokenisedRows:
    # The bound is applied here: torchtune's tokenizers would put an eos where a cut answer goes on.
    bound, tokenizer.max_seq_len = getattr(tokenizer, "max_seq_len", None), None
    try:
        chunks = list(_tokenised(dataset, max_seq_len))
    finally:
        tokenizer.max_seq_len = bound
    faults = [fault for chunk in chunks for fault in chunk.faults]
    if faults and on_bad_row == "stop":
        more = f"\n  and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        shown = "\n  ".join(f"{origin_of(dataset, row)}: {fault}" for row, fault in faults[:_SHOWN_FAULTS])
        raise UserError(
            f"dataset: {len(faults)} bad rows; mend them, or leave them out with on_bad_row=skip\n  {shown}{more}"
        )

    def joined(field: str) -> torch.Tensor:
        return torch.from_numpy(numpy.concatenate([numpy.zeros(0, numpy.int32), *(getattr(c, field) for c in chunks)]))

    return TokenisedRows(
        joined("tokens"),
        joined("labels"),
        torch.cat([torch.zeros(1, dtype=torch.int64), joined("lengths").long().cumsum(0)]),
        packed=False,
        max_seq_len=max_seq_len,
        num_bad=len(faults),
        num_cut=sum(chunk.num_cut for chunk in chunks),
    )


def _tokenised(dataset: Any, max_seq_len: int | None) -> Iterator["_Chunk"]:
    """The rows' tokens, some hundred rows at a time, in order, with a progress bar."""
    from rich.progress import Progress

    count = len(dataset)
    chunks = [range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    show = not sys.stderr.isatty()
    with Progress(transient=True, disable=show) as progress, _workers(dataset, count, max_seq_len) as run:
        task = progress.add_task("tokenising", total=count)
        for indices, chunk in zip(chunks, run(chunks), strict=True):
            yield chunk
            progress.advance(task, len(indices))


@contextlib.contextmanager
def _workers(dataset: Any, count: int, max_seq_len: int | None) -> Iterator[Any]:
    """A map over chunks of rows: in forked processes, which need no pickling of the dataset, or in this one."""
    global _dataset
    _dataset = dataset
    tokenise = functools.partial(_tokenise_chunk, max_seq_len)
    processes = min(os.cpu_count() or 1, count // (4 * _CHUNK))
    if processes < 2 or sys.platform != "linux":
        yield lambda chunks: map(tokenise, chunks)
        return
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it would warn about the fork
    gc.freeze()  # else the workers' collections touch, and so copy, every row
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield lambda chunks: pool.map(tokenise, chunks)
    gc.unfreeze()


_dataset: Any = None


@dataclasses.dataclass
class _Chunk:
    """Some rows as flat arrays, which travel between processes as plain bytes."""

    tokens: numpy.ndarray
    labels: numpy.ndarray
    lengths: numpy.ndarray
    faults: list[tuple[int, str]]
    num_cut: int


def _tokenise_chunk(max_seq_len: int | None, indices: range) -> _Chunk:
    tokens, labels, faults, num_cut = [], [], [], 0
    for index in indices:
        result = _tokenise_row(index)
        if isinstance(result, str):
            faults.append((index, result))
            continue
        row_tokens, row_labels = result[0][:max_seq_len], result[1][:max_seq_len]
        if (row_labels[1:] != IGNORE_INDEX).any():
            tokens.append(row_tokens)
            labels.append(row_labels)
        elif (result[1][1:] != IGNORE_INDEX).any():
            num_cut += 1
        else:
            faults.append((index, "no answer to learn from"))
    empty = numpy.zeros(0, numpy.int32)
    lengths = numpy.array([len(row) for row in tokens], numpy.int32)
    return _Chunk(numpy.concatenate([empty, *tokens]), numpy.concatenate([empty, *labels]), lengths, faults, num_cut)


def _tokenise_row(index: int) -> tuple[numpy.ndarray, numpy.ndarray] | str:
    try:
        row = _dataset[index]
        return numpy.asarray(row["tokens"], numpy.int32), numpy.asarray(row["labels"], numpy.int32)
    except RowError as error:
        return str(error)
    except KeyError as error:
        return f"no field {error.args[0]}"
    except (TypeError, ValueError, AttributeError, AssertionError) as error:  # a component's own check of the row
        return f"cannot be used: {' '.join(str(error).split()) or type(error).__name__}"


def _cache_path(
    dataset: Any, arguments: DictConfig, tokenizer_config: DictConfig, on_bad_row: str, max_seq_len: int | None
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


def _read_cache(path: Path | None) -> TokenisedRows | None:
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = [file.get_tensor(name) for name in ("tokens", "labels", "offsets")]
            settings = json.loads(file.metadata()["settings"])
    except (SafetensorError, KeyError, OSError):
        return None  # torn: made anew
    return TokenisedRows(*tensors, **settings)


def _write_cache(path: Path | None, rows: TokenisedRows) -> None:
    if path is None or len(rows) == 0:
        return
    settings = {name: getattr(rows, name) for name in ("packed", "max_seq_len", "num_bad", "num_cut")}
    tensors = {name: getattr(rows, name).contiguous() for name in ("tokens", "labels", "offsets")}
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
