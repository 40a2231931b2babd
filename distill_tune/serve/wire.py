"""What goes between a run and the server: rows of tokens one way, records of what was learned the other.

A body is a safetensors file. Rows are ``tokens`` int32 ``[s]``, ``learned`` uint8 ``[s]`` and ``lengths`` int64
``[rows]``, and where the teacher is to tell of further tokens as well, ``others`` int32 ``[n * j]``, j of each learned
token; records are ``rows`` uint8, each row's bytes (:mod:`distill_tune.cache.encoding`) one after another, and
their ``lengths`` int64 ``[rows]``.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from distill_tune.data.batch import Batch, Row
from distill_tune.data.datasets import IGNORE_INDEX

OTHERS = "others"


class WireError(ValueError):
    """A body that is none of ours, in a line."""


def rows_as_bytes(batch: Batch) -> bytes:
    """The rows of a batch, as its teacher reads them."""
    tokens = batch.tokens[0].cpu().numpy().astype(numpy.int32)
    learned = numpy.zeros(len(tokens), numpy.uint8)
    learned[batch.supervised_positions.cpu().numpy() + 1] = 1  # positions tell of the token that follows
    body: dict[str, numpy.ndarray] = {
        "tokens": tokens,
        "learned": learned,
        "lengths": numpy.array(batch.lengths, numpy.int64),
    }
    if batch.likeliest is not None:
        body[OTHERS] = batch.likeliest.numpy().astype(numpy.int32).reshape(-1)
    return save(body)


def rows_of(body: bytes, *, vocab_size: int, most_tokens: int) -> list[Row]:
    """
    Args:
        most_tokens: of a row.

    Raises:
        WireError: other bytes; a row without tokens, of more than ``most_tokens``, or with a token that there is not.
    """
    found = _tensors(body, {"tokens": numpy.int32, "learned": numpy.uint8, "lengths": numpy.int64})
    tokens, learned, lengths = found["tokens"], found["learned"].copy(), found["lengths"]
    if len(tokens) != len(learned) or not len(lengths):
        raise WireError("tokens and learned must be of one length, and there must be a row")
    if (lengths < 1).any() or (lengths > most_tokens).any():
        raise WireError(f"a row has {int(lengths.max())} tokens: each must have 1 to {most_tokens}")
    if lengths.sum() != len(tokens):
        raise WireError(f"the lengths add up to {int(lengths.sum())}, there are {len(tokens)} tokens")
    if (tokens < 0).any() or (tokens >= vocab_size).any():
        worst = int(tokens.min()) if (tokens < 0).any() else int(tokens.max())
        raise WireError(f"a row has the token {worst}: the teacher knows {vocab_size}, numbered from 0")
    starts = numpy.cumsum([0, *lengths])[:-1]
    learned[starts] = 0  # nothing stands before a row's first token from which it could be predicted
    labels = numpy.where(learned > 0, tokens, numpy.int32(IGNORE_INDEX))
    sizes = lengths.tolist()
    parts = (torch.from_numpy(values.copy()).split(sizes) for values in (tokens, labels))
    return [Row(of_tokens, of_labels) for of_tokens, of_labels in zip(*parts, strict=True)]


def with_others(rows: Sequence[Row], body: bytes, count: int, vocab_size: int) -> list[Row]:
    """The rows of a body with so many further tokens of each learned one, of which the teacher is to tell as well.

    Raises:
        WireError: there are not so many, or a token that there is not.
    """
    found = _tensors(body, {OTHERS: numpy.int32})[OTHERS]
    learned = [int((row.labels != IGNORE_INDEX).sum()) for row in rows]
    if len(found) != sum(learned) * count:
        raise WireError(f"{OTHERS} has {len(found)} tokens, where {count} of each of {sum(learned)} are asked for")
    if (found < 0).any() or (found >= vocab_size).any():
        raise WireError(f"{OTHERS} has a token that is none of the teacher's {vocab_size}")
    of_rows = torch.from_numpy(found.copy()).reshape(-1, count).split(learned)
    return [row._replace(likeliest=of_row) for row, of_row in zip(rows, of_rows, strict=True)]


def records_as_bytes(rows: Sequence[bytes]) -> bytes:
    lengths = numpy.array([len(row) for row in rows], numpy.int64)
    return save({"rows": numpy.frombuffer(b"".join(rows), numpy.uint8), "lengths": lengths})


def records_of(body: bytes, num_rows: int) -> list[memoryview]:
    """
    Raises:
        WireError: other bytes, or not of so many rows.
    """
    found = _tensors(body, {"rows": numpy.uint8, "lengths": numpy.int64})
    lengths = found["lengths"]
    if len(lengths) != num_rows or (lengths < 0).any() or lengths.sum() != len(found["rows"]):
        raise WireError(f"an answer of {len(lengths)} rows, where {num_rows} were asked for")
    ends = numpy.cumsum([0, *lengths]).tolist()
    whole = memoryview(found["rows"].tobytes())
    return [whole[start:stop] for start, stop in itertools.pairwise(ends)]


def _tensors(body: bytes, dtypes: Mapping[str, type]) -> dict[str, numpy.ndarray]:
    try:
        found = load(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise WireError(f"a body that is no safetensors file: {str(error)[:100]}") from error
    for name, dtype in dtypes.items():
        if name not in found or found[name].dtype != dtype or found[name].ndim != 1:
            raise WireError(f"a body without {name}, {numpy.dtype(dtype).name} of one dimension")
    return found
