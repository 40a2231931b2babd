"""Makes rows' records from a teacher's signal."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from distill_tune.cache.encoding import (
    AnyEncoding,
    HiddenEncoding,
    LikelihoodEncoding,
    SampledEncoding,
    TopEncoding,
    without_positions,
)
from distill_tune.errors import UserError
from distill_tune.losses import HiddenStates, SampledTokens, TokenLikelihoods, TopTokens, chunk_rows
from distill_tune.losses.divergences import HUGE
from distill_tune.losses.signals import TeacherSignal, capped

_POSITIONS = 256  # of a row that are drawn for together, wherever the row stands
_COPIES = 4  # of a position's logits that are there at a time


class _Piece(NamedTuple):
    """Some positions of one row: which row, which of its pieces, and which of all positions."""

    row: int
    number: int
    start: int
    stop: int


@torch.no_grad()
def encoded(
    encoding: AnyEncoding,
    signal: Any,
    digests: Sequence[bytes],
    num_positions: Sequence[int],
    seed: int,
    others: torch.Tensor | None = None,
    targets: torch.Tensor | None = None,
) -> list[bytes]:
    """The record of each row, as bytes.

    What is drawn for a row is a function of the seed, the row and its logits: whatever stands beside it.

    Args:
        signal: of the rows' positions, one row after another; of a ``hidden`` encoding :class:`HiddenStates`.
        num_positions: of each row.
        others: of a ``top_k`` encoding: tokens of each position that are kept beside the likeliest, ``[n, j]``.
        targets: the rows' own tokens there, ``[n]``, int64; a ``likelihood`` encoding needs them.

    Raises:
        UserError: the teacher gives what is no number.
    """
    if isinstance(encoding, HiddenEncoding):
        assert isinstance(signal, HiddenStates)
        _require_numbers(signal.hidden - signal.hidden)  # also of what is infinite
        return encoding.encode(signal.hidden, num_positions)
    records = list(_records(encoding, signal, digests, num_positions, seed, others, targets))
    if not records:
        return [without_positions()] * len(num_positions)
    record = _joined(records)
    of_tokens = record.weights if isinstance(record, SampledTokens) else record.log_probs
    _require_numbers(of_tokens, getattr(record, "entropy", of_tokens))
    if isinstance(record, TopTokens):
        assert isinstance(encoding, TopEncoding)
        return encoding.beside(others).encode(record, num_positions)
    assert isinstance(encoding, SampledEncoding | LikelihoodEncoding)
    return encoding.encode(record, num_positions)  # type: ignore[arg-type]


def _require_numbers(*tensors: torch.Tensor) -> None:
    """
    Raises:
        UserError: one is NaN.
    """
    if any(tensor.isnan().any() for tensor in tensors):
        raise UserError(
            "teacher_model: what it says of a row is no number (NaN, or infinite); are its weights whole, and does its "
            "dtype reach far enough? fp32 and bf16 do"
        )


@torch.no_grad()
def scores_of(record: SampledTokens, signal: TeacherSignal, start: int) -> torch.Tensor:
    """How far stored draws are from a teacher, ``[n]``, on the CPU: KL(the one that was drawn from || the teacher) in
    nats, on average; of a position alone also below 0. Of the same teacher 0 on average, whatever the device.

    Args:
        record: of some positions that follow one another.
        signal: of these and others, as the teacher gives it.
        start: which of the signal's positions is the record's first.
    """
    scores = [torch.zeros(0)]
    for first in range(0, len(record), _POSITIONS):
        part = record[first : first + _POSITIONS]
        at, count = start + first, len(part)
        logits = capped(signal.logits(at, at + count, signal.memory(count)), signal.softcap)[:, : record.vocab_size]
        log_probs = (logits.float() / record.temperature).log_softmax(-1).gather(1, part.ids.long().to(logits.device))
        log_probs = log_probs.cpu().clamp(min=-HUGE)  # 0 * -inf must be 0
        scores.append(-torch.linalg.vecdot(part.weights, log_probs) - part.entropy)
    return torch.cat(scores)


def _records(
    encoding: SampledEncoding | TopEncoding | LikelihoodEncoding,
    signal: TeacherSignal,
    digests: Sequence[bytes],
    num_positions: Sequence[int],
    seed: int,
    others: torch.Tensor | None,
    targets: torch.Tensor | None,
) -> Iterator[Any]:
    total, device = sum(num_positions), _device_of(signal)
    most = max(_POSITIONS, chunk_rows(total, signal.logits_per_row * 4 * _COPIES, device))
    for pieces in _together(list(_pieces(num_positions)), most):
        start, stop = pieces[0].start, pieces[-1].stop
        logits = capped(signal.logits(start, stop, signal.memory(stop - start)), signal.softcap)
        logits = logits[:, : encoding.vocab_size]
        if isinstance(encoding, TopEncoding):
            of_part = None if others is None else others[start:stop]
            yield TopTokens.of(logits, encoding.k, encoding.temperature, of_part)
            continue
        if isinstance(encoding, LikelihoodEncoding):
            assert targets is not None
            yield TokenLikelihoods.of(logits, targets[start:stop].to(logits.device), encoding.temperature)
            continue
        for piece in pieces:
            generator = torch.Generator(logits.device).manual_seed(_seed_of(seed, digests[piece.row], piece.number))
            of_piece = logits[piece.start - start : piece.stop - start]
            yield SampledTokens.drawn(
                of_piece, encoding.draws, encoding.temperature, generator, encoding.proposal_temperature
            )


def _device_of(signal: Any) -> torch.device:
    hidden = getattr(signal, "hidden", None)
    return hidden.device if isinstance(hidden, torch.Tensor) else torch.device("cpu")


def _pieces(num_positions: Sequence[int]) -> Iterator[_Piece]:
    first = 0
    for row, count in enumerate(num_positions):
        for number, start in enumerate(range(first, first + count, _POSITIONS)):
            yield _Piece(row, number, start, min(start + _POSITIONS, first + count))
        first += count


def _together(pieces: Sequence[_Piece], most: int) -> Iterator[list[_Piece]]:
    """Pieces that follow one another, of so many positions at most."""
    group: list[_Piece] = []
    for piece in pieces:
        if group and piece.stop - group[0].start > most:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _seed_of(seed: int, digest: bytes, number: int) -> int:
    named = hashlib.blake2b(digest + number.to_bytes(8, "little") + str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(named, "little") >> 1  # a signed number


def _joined(records: Sequence[Any]) -> SampledTokens | TopTokens | TokenLikelihoods:
    """One record of all positions; those with fewer tokens are filled up."""
    first = records[0]
    if isinstance(first, TokenLikelihoods):
        log_probs = torch.cat([record.log_probs for record in records])
        return TokenLikelihoods(log_probs, first.temperature, first.vocab_size)
    if isinstance(first, TopTokens):
        names = ("ids", "log_probs", "log_rest")
        ids, log_probs, log_rest = (torch.cat([getattr(record, name) for record in records]) for name in names)
        return TopTokens(ids, log_probs, log_rest, first.temperature, first.vocab_size)
    widest = max(record.ids.shape[1] for record in records)
    ids, weights = (
        torch.cat([torch.nn.functional.pad(of, (0, widest - of.shape[1])) for of in parts])
        for parts in ([record.ids for record in records], [record.weights for record in records])
    )
    entropy = torch.cat([record.entropy for record in records])
    return SampledTokens(ids, weights, entropy, first.temperature, first.vocab_size)
