"""Log-probabilities that a server lists for each position, as a record."""

import math
from collections.abc import Mapping, Sequence

import torch

from distill_tune.cache.encoding import LikelihoodEncoding, TopEncoding
from distill_tune.data.batch import Batch
from distill_tune.losses import TokenLikelihoods, TopTokens
from distill_tune.serve.connection import NoAnswer, Refused

_NOTHING = -9000.0  # some write minus infinity as -9999, since JSON has none
_TOO_MUCH = 1.02  # a position's mass, of log-probabilities in bf16
_ERROR = torch.finfo(torch.float32).eps  # of a mass near 1, of log-probabilities that were computed in float32

Position = Mapping[int, float]  # log-probabilities by token


def record_of(positions: Sequence[Position], encoding: TopEncoding) -> TopTokens:
    """The likeliest of each position's tokens, and 1 less their mass for all others.

    Of a teacher that is sure, 1 less the mass is no more than the error of its log-probabilities, and may be 0 or less.
    The rest is then taken as k times what the last of the k has, as if probabilities fell with the square of their
    rank, or as that error where it is less. At most it is what the last has times the number of the others.

    Raises:
        NoAnswer: a position with fewer tokens than were asked for, or with what is no token or no log-probability.
        Refused: what is listed is no distribution, or of another vocabulary.
    """
    k = min(encoding.k, encoding.vocab_size)
    ids, log_probs = torch.zeros(len(positions), k, dtype=torch.int32), torch.full((len(positions), k), -torch.inf)
    for row, position in enumerate(positions):
        likeliest = sorted(position.items(), key=lambda entry: (-entry[1], entry[0]))[:k]
        if len(likeliest) < k:
            raise NoAnswer(f"a position with {len(likeliest)} log-probabilities, where {k} were asked for")
        if min(position) < 0 or any(map(math.isnan, position.values())):
            raise NoAnswer("a position with a token below 0, or a log-probability that is no number")
        if (largest := max(token for token, _ in likeliest)) >= encoding.vocab_size:
            raise Refused(200, f"token {largest} is likely: the student knows {encoding.vocab_size}")
        ids[row] = torch.tensor([token for token, _ in likeliest], dtype=torch.int32)
        values = torch.tensor([value for _, value in likeliest], dtype=torch.float64)
        log_probs[row] = values.masked_fill(values < _NOTHING, -torch.inf).float()
    mass = log_probs.double().exp().sum(-1)
    if (mass > _TOO_MUCH).any():
        raise Refused(200, f"log-probabilities of a position add up to {mass.max():.3f}: they are no distribution")
    last = log_probs[:, -1].double().exp()
    rest = torch.maximum(1 - mass, (k * last).clamp(max=_ERROR)).minimum((encoding.vocab_size - k) * last)
    return TopTokens(ids, log_probs, rest.log().float(), encoding.temperature, encoding.vocab_size)


def blobs_of(
    rows: Sequence[Sequence[Position]], batch: Batch, encoding: TopEncoding, of_others: torch.Tensor | None = None
) -> list[bytes]:
    """Each row's record, of its supervised positions.

    Args:
        of_others: log-probabilities of the batch's ``likeliest`` tokens, ``[n, j]``; None where it has none.

    Raises:
        NoAnswer: not as many positions as the rows have.
    """
    _require_all(rows, batch)
    record = record_of([position for row in rows for position in row], encoding)
    if batch.likeliest is not None and of_others is not None:
        if of_others.isnan().any() or (of_others > 0).any():
            raise NoAnswer("a log-probability above 0, or that is no number")
        record = record.beside(batch.likeliest, of_others.masked_fill(of_others < _NOTHING, -torch.inf))
    return encoding.beside(batch.likeliest).encode(record, batch.num_supervised)


def blobs_of_likelihoods(rows: Sequence[Sequence[float]], batch: Batch, encoding: LikelihoodEncoding) -> list[bytes]:
    """Each row's record, of the log-probabilities of its own tokens.

    Raises:
        NoAnswer: not as many as the rows have positions, or what is no log-probability.
    """
    _require_all(rows, batch)
    values = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    if values.isnan().any() or (values > math.log(_TOO_MUCH)).any():
        raise NoAnswer("a log-probability above 0, or that is no number")
    log_probs = values.masked_fill(values < _NOTHING, -torch.inf).clamp(max=0).float()
    return encoding.encode(TokenLikelihoods(log_probs, encoding.temperature, encoding.vocab_size), batch.num_supervised)


def _require_all(rows: Sequence[Sequence[object]], batch: Batch) -> None:
    found = [len(row) for row in rows]
    if found != list(batch.num_supervised):
        raise NoAnswer(f"an answer of {found} positions, where {list(batch.num_supervised)} were asked for")


def rows_asked_for(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Of each row its tokens, and the places in it of the tokens to learn, from 1 on."""
    tokens = batch.tokens[0].cpu().split(list(batch.lengths))
    positions = batch.supervised_positions.cpu().split(list(batch.num_supervised))
    found, start = [], 0
    for of_row, places in zip(tokens, positions, strict=True):
        found.append((of_row.tolist(), (places - start + 1).tolist()))
        start += len(of_row)
    return found
