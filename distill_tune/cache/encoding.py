"""What is kept of a teacher's word on a row, as bytes: on the disk, and between a server and a run.

| kind | a position | an entry |
| --- | --- | --- |
| sampled | 3 bytes: entropy, number of entries | 3 bytes: id in 18 bits, count in 6; else 4 |
| top_k | 2 bytes: log-probability of the rest | 4 bytes: id in 18 bits, log-probability in 14; or 20 and 12 |
| hidden | 2 bytes a dimension | |
| likelihood | 4 bytes: log-probability of the row's own token | |

A row begins with the number of its positions, 4 bytes. All numbers are little-endian.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy
import torch

from distill_tune.losses import SampledTokens, TokenLikelihoods, TopTokens

MOST_DRAWS = 4095
MOST_TOKENS = 2**20  # of a vocabulary
_NARROW_IDS = 18  # bits
_WIDE_IDS = 20
_NARROW_COUNTS = 2**6  # more draws than this less one take 4 bytes an entry
_MOST_ENTROPY = 16.0  # nats; that of 2^20 tokens is 13.9
_LEAST_LOG_PROB = -32.0
_LEAST_TEMPERATURE = 1e-3  # logits divided by less are infinite
_LOG_WEIGHTS = (-24.0, 8.0)
# Distinct tokens of so many draws, as large models give them (arXiv 2503.16870), and how they grow with the draws.
_DISTINCT_OF_50, _WITH_DRAWS = 12.0, 0.8

Blob = bytes | memoryview


class Encoding(Protocol):
    """Records as bytes, row by row, and back.

    Attributes:
        kind: its name in a config.
    """

    kind: ClassVar[str]

    def bytes_of_position(self) -> tuple[float, float]:
        """About, and at most."""
        ...

    def encode(self, record: Any, num_positions: Sequence[int]) -> list[bytes]:
        """
        Args:
            record: of the rows' positions, one row after another.
            num_positions: of each row.
        """
        ...

    def decode(self, rows: Sequence[Blob]) -> Any:
        """The record of some rows, one after another, on the CPU.

        Raises:
            ValueError: bytes that are none of such rows; a token that the vocabulary has not.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SampledEncoding:
    """Of :class:`~distill_tune.losses.SampledTokens`.

    Counts are kept as they are. Importance weights, where tokens were drawn at another temperature, are kept as
    logarithms between e^-24 and e^8: in 14 bits a weight is off by a thousandth at most. Entropy is off by 1.3e-4 nats
    at most.
    """

    vocab_size: int
    draws: int = 50
    temperature: float = 1.0
    proposal_temperature: float | None = None

    kind: ClassVar[str] = "sampled"

    def __post_init__(self) -> None:
        _require_vocabulary(self.vocab_size)
        if not 1 <= self.draws <= MOST_DRAWS:
            raise ValueError(f"draws={self.draws}: must be from 1 to {MOST_DRAWS}")
        _require_temperature("temperature", self.temperature)
        if self.proposal_temperature is not None:
            _require_temperature("proposal_temperature", self.proposal_temperature)

    @property
    def _has_weights(self) -> bool:
        return self.proposal_temperature not in (None, self.temperature)

    @property
    def _entry_bytes(self) -> int:
        narrow = self.draws < _NARROW_COUNTS and _id_bits(self.vocab_size) == _NARROW_IDS
        return 3 if narrow and not self._has_weights else 4

    @property
    def _id_bits(self) -> int:
        return _id_bits(self.vocab_size) if self._entry_bytes == 3 or self._has_weights else _WIDE_IDS

    def bytes_of_position(self) -> tuple[float, float]:
        least, some = 2 + numpy.dtype(self._count_dtype).itemsize, _DISTINCT_OF_50 * (self.draws / 50) ** _WITH_DRAWS
        return least + self._entry_bytes * min(some, self.draws), least + self._entry_bytes * self.draws

    @property
    def _count_dtype(self) -> str:
        return "<u1" if self.draws < 2**8 else "<u2"

    def encode(self, record: SampledTokens, num_positions: Sequence[int]) -> list[bytes]:
        weights = record.weights.float().cpu().numpy()  # [n, k]
        is_token = weights > 0
        ids = record.ids.cpu().numpy()[is_token].astype(numpy.uint32)
        if self._has_weights:
            values = _codes(numpy.log(weights[is_token]), *_LOG_WEIGHTS, 32 - self._id_bits)
        else:
            values = numpy.rint(weights[is_token] * self.draws).astype(numpy.uint32)
        entries = (ids | values << self._id_bits).astype("<u4").view(numpy.uint8).reshape(-1, 4)[:, : self._entry_bytes]
        counts = is_token.sum(-1)
        entropy = _codes(record.entropy.float().cpu().numpy(), 0.0, _MOST_ENTROPY, 16).astype("<u2")
        before = numpy.concatenate([[0], counts.cumsum()])
        return [
            _header(stop - start)
            + entropy[start:stop].tobytes()
            + counts[start:stop].astype(self._count_dtype).tobytes()
            + entries[before[start] : before[stop]].tobytes()
            for start, stop in _bounds(num_positions)
        ]

    def decode(self, rows: Sequence[Blob]) -> SampledTokens:
        entropies, all_counts, all_entries = [], [], []
        for row in rows:
            reader = _Reader(row)
            entropies.append(reader.take("<u2", reader.num_positions))
            all_counts.append(reader.take(self._count_dtype, reader.num_positions))
            all_entries.append(reader.take("<u1", int(all_counts[-1].sum()) * self._entry_bytes))
            reader.require_end()
        counts = numpy.concatenate([numpy.zeros(0, int), *all_counts]).astype(int)
        in_bytes = numpy.concatenate([numpy.zeros(0, numpy.uint8), *all_entries]).reshape(-1, self._entry_bytes)
        entries = numpy.zeros((len(in_bytes), 4), numpy.uint8)
        entries[:, : self._entry_bytes] = in_bytes
        words = entries.view("<u4")[:, 0]
        is_token = numpy.arange(max(1, counts.max(initial=0))) < counts[:, None]  # [n, k]
        ids, weights = numpy.zeros(is_token.shape, numpy.int32), numpy.zeros(is_token.shape, numpy.float32)
        ids[is_token] = _known(words & (1 << self._id_bits) - 1, self.vocab_size)
        values = words >> self._id_bits
        if self._has_weights:
            weights[is_token] = numpy.exp(_values(values, *_LOG_WEIGHTS, 32 - self._id_bits))
        else:
            weights[is_token] = values / numpy.float32(self.draws)
        entropy = _values(numpy.concatenate([numpy.zeros(0, "<u2"), *entropies]), 0.0, _MOST_ENTROPY, 16)
        return SampledTokens(
            torch.from_numpy(ids), torch.from_numpy(weights), _float32(entropy), self.temperature, self.vocab_size
        )


@dataclasses.dataclass(frozen=True)
class TopEncoding:
    """Of :class:`~distill_tune.losses.TopTokens`; log-probabilities between -32 and 0, minus infinity by itself.

    Rounded, the k + 1 events add up to a little more or less than 1, which a divergence would take for a difference:
    what is read is divided by its sum. The tail is as it was.
    """

    vocab_size: int
    k: int = 50
    temperature: float = 1.0

    kind: ClassVar[str] = "top_k"

    def __post_init__(self) -> None:
        _require_vocabulary(self.vocab_size)
        if self.k < 1:
            raise ValueError(f"k={self.k}: must be at least 1")
        _require_temperature("temperature", self.temperature)

    def beside(self, others: torch.Tensor | None) -> "TopEncoding":
        """That of records with so many more tokens of a position, ``[n, j]``."""
        return self if others is None else dataclasses.replace(self, k=self.k + others.shape[1])

    @property
    def _entries(self) -> int:
        """Of a position."""
        return min(self.k, self.vocab_size)

    def bytes_of_position(self) -> tuple[float, float]:
        return 2.0 + 4.0 * self._entries, 2.0 + 4.0 * self._entries

    def encode(self, record: TopTokens, num_positions: Sequence[int]) -> list[bytes]:
        bits = _id_bits(self.vocab_size)
        ids, log_probs = record.ids.cpu().numpy(), record.log_probs.float().cpu().numpy()  # [n, k]
        words = (ids.astype(numpy.uint32) | _codes_of_log_probs(log_probs, 32 - bits) << bits).astype("<u4")
        rest = _codes_of_log_probs(record.log_rest.float().cpu().numpy(), 16).astype("<u2")
        return [
            _header(stop - start) + rest[start:stop].tobytes() + words[start:stop].tobytes()
            for start, stop in _bounds(num_positions)
        ]

    def decode(self, rows: Sequence[Blob]) -> TopTokens:
        rests, all_words = [numpy.zeros(0, "<u2")], [numpy.zeros((0, self._entries), "<u4")]
        for row in rows:
            reader = _Reader(row)
            rests.append(reader.take("<u2", reader.num_positions))
            all_words.append(reader.take("<u4", reader.num_positions * self._entries).reshape(-1, self._entries))
            reader.require_end()
        words, bits = numpy.concatenate(all_words), _id_bits(self.vocab_size)
        ids = _known(words & (1 << bits) - 1, self.vocab_size).astype(numpy.int32)
        log_probs = _log_probs_of(32 - bits)[words >> bits]  # [n, k]
        log_rest = _log_probs_of(16)[numpy.concatenate(rests)]
        log_total = numpy.log(numpy.exp(log_probs).sum(-1) + numpy.exp(log_rest))
        return TopTokens(
            torch.from_numpy(ids),
            torch.from_numpy(log_probs - log_total[:, None]),
            torch.from_numpy(log_rest - log_total),
            self.temperature,
            self.vocab_size,
        )


@dataclasses.dataclass(frozen=True)
class HiddenEncoding:
    """Of a teacher's last hidden states ``[n, width]``, in bfloat16."""

    vocab_size: int
    width: int

    kind: ClassVar[str] = "hidden"

    def bytes_of_position(self) -> tuple[float, float]:
        return 2.0 * self.width, 2.0 * self.width

    def encode(self, record: torch.Tensor, num_positions: Sequence[int]) -> list[bytes]:
        hidden = record.to(torch.bfloat16).cpu().contiguous().view(torch.int16).numpy()
        return [_header(stop - start) + hidden[start:stop].tobytes() for start, stop in _bounds(num_positions)]

    def decode(self, rows: Sequence[Blob]) -> torch.Tensor:
        found = [numpy.zeros((0, self.width), "<i2")]
        for row in rows:
            reader = _Reader(row)
            found.append(reader.take("<i2", reader.num_positions * self.width).reshape(-1, self.width))
            reader.require_end()
        return torch.from_numpy(numpy.concatenate(found)).view(torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class LikelihoodEncoding:
    """Of :class:`~distill_tune.losses.TokenLikelihoods`, as they are."""

    vocab_size: int
    temperature: float = 1.0

    kind: ClassVar[str] = "likelihood"

    def __post_init__(self) -> None:
        _require_temperature("temperature", self.temperature)

    def bytes_of_position(self) -> tuple[float, float]:
        return 4.0, 4.0

    def encode(self, record: TokenLikelihoods, num_positions: Sequence[int]) -> list[bytes]:
        log_probs = record.log_probs.float().cpu().numpy().astype("<f4")
        return [_header(stop - start) + log_probs[start:stop].tobytes() for start, stop in _bounds(num_positions)]

    def decode(self, rows: Sequence[Blob]) -> TokenLikelihoods:
        found = [numpy.zeros(0, "<f4")]
        for row in rows:
            reader = _Reader(row)
            found.append(reader.take("<f4", reader.num_positions))
            reader.require_end()
        log_probs = numpy.concatenate(found)
        if not (log_probs <= 0).all():
            raise ValueError("a record has a log-probability above 0, or one that is no number")
        return TokenLikelihoods(_float32(log_probs), self.temperature, self.vocab_size)


AnyEncoding = SampledEncoding | TopEncoding | HiddenEncoding | LikelihoodEncoding

_ENCODINGS: dict[str, type[AnyEncoding]] = {
    of.kind: of for of in (SampledEncoding, TopEncoding, HiddenEncoding, LikelihoodEncoding)
}


def encoding_of(kind: str, settings: dict[str, Any]) -> AnyEncoding:
    """The encoding whose kind and fields these are.

    Raises:
        ValueError: there is no such kind, or a setting is out of its range.
        TypeError: settings that the kind has not.
    """
    if kind not in _ENCODINGS:
        raise ValueError(f"kind={kind}: must be one of {', '.join(_ENCODINGS)}")
    return _ENCODINGS[kind](**settings)


def settings_of(encoding: AnyEncoding) -> dict[str, Any]:
    """What :func:`encoding_of` makes it of again."""
    return dataclasses.asdict(encoding)


class _Reader:
    """Takes numbers from the bytes of a row."""

    def __init__(self, row: Blob) -> None:
        self._row, self._at = row, 0
        self.num_positions = int(self.take("<u4", 1)[0])

    def take(self, dtype: str, count: int) -> numpy.ndarray:
        if self._at + count * numpy.dtype(dtype).itemsize > len(self._row):
            raise ValueError("the record of a row ends early")
        found = numpy.frombuffer(self._row, dtype, count, self._at)
        self._at += found.nbytes
        return found

    def require_end(self) -> None:
        if self._at != len(self._row):
            raise ValueError("the record of a row is too long")


def positions_in(row: Blob) -> int:
    """How many positions a row's record is of."""
    return _Reader(row).num_positions


def without_positions() -> bytes:
    """The record, of any kind, of a row that has no position."""
    return _header(0)


def _require_vocabulary(vocab_size: int) -> None:
    if vocab_size > MOST_TOKENS:
        raise ValueError(f"a vocabulary of {vocab_size} tokens: ids are kept up to {MOST_TOKENS}")


def _require_temperature(name: str, temperature: float) -> None:
    if not _LEAST_TEMPERATURE <= temperature < numpy.inf:
        raise ValueError(f"{name}={temperature:g}: must be at least {_LEAST_TEMPERATURE:g}")


def _id_bits(vocab_size: int) -> int:
    return _NARROW_IDS if vocab_size <= 2**_NARROW_IDS else _WIDE_IDS


def _known(ids: numpy.ndarray, vocab_size: int) -> numpy.ndarray:
    if (largest := ids.max(initial=0)) >= vocab_size:
        raise ValueError(f"a record has the token {largest}, of a vocabulary of {vocab_size}")
    return ids


def _header(num_positions: int) -> bytes:
    return num_positions.to_bytes(4, "little")


def _bounds(num_positions: Sequence[int]) -> list[tuple[int, int]]:
    ends = numpy.cumsum([0, *num_positions]).tolist()
    return list(itertools.pairwise(ends))


def _codes(values: numpy.ndarray, least: float, most: float, bits: int) -> numpy.ndarray:
    """Whole numbers of so many bits, in even steps from ``least`` to ``most``."""
    shares = (numpy.clip(values, least, most).astype(numpy.float64) - least) / (most - least)
    return numpy.rint(shares * ((1 << bits) - 1)).astype(numpy.uint32)


def _values(codes: numpy.ndarray, least: float, most: float, bits: int) -> numpy.ndarray:
    return least + codes.astype(numpy.float64) * ((most - least) / ((1 << bits) - 1))


def _codes_of_log_probs(log_probs: numpy.ndarray, bits: int) -> numpy.ndarray:
    """0 is minus infinity alone: what is merely unlikely is not impossible."""
    codes = numpy.maximum(_codes(log_probs, _LEAST_LOG_PROB, 0.0, bits), 1)
    return numpy.where(log_probs == -numpy.inf, numpy.uint32(0), codes)


@functools.cache
def _log_probs_of(bits: int) -> numpy.ndarray:
    """Of each code, float32."""
    values = _values(numpy.arange(1 << bits), _LEAST_LOG_PROB, 0.0, bits).astype(numpy.float32)
    values[0] = -numpy.inf
    return values


def _float32(values: numpy.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(numpy.float32))
