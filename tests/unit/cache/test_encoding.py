"""Records come back from their bytes as near as the bits allow, row by row."""

import math

import numpy
import pytest
import torch

from distill_tune.cache.encoding import (
    HiddenEncoding,
    LikelihoodEncoding,
    SampledEncoding,
    TopEncoding,
    encoding_of,
    positions_in,
)
from distill_tune.losses import SampledTokens, TokenLikelihoods, TopTokens

POSITIONS = [3, 0, 5, 1]


def logits(vocab_size: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(sum(POSITIONS), vocab_size, generator=torch.Generator().manual_seed(0)) * scale


def by_token(record: SampledTokens) -> torch.Tensor:
    """Weights, ``[n, v]``."""
    dense = torch.zeros(len(record.ids), record.vocab_size)
    return dense.scatter_add(1, record.ids.long(), record.weights)


@pytest.mark.parametrize(
    ("vocab_size", "draws", "entry"), [(1000, 50, 3), (2**18, 63, 3), (2**18, 64, 4), (300_000, 50, 4), (500, 4000, 4)]
)
def test_counts_come_back_as_they_were(vocab_size, draws, entry):
    of = logits(vocab_size)
    of[0, vocab_size - 1] = 100.0  # all draws give the last token
    record = SampledTokens.drawn(of, draws, 0.7, torch.Generator().manual_seed(1))
    encoding = SampledEncoding(vocab_size, draws, 0.7)
    rows = encoding.encode(record, POSITIONS)
    assert [positions_in(row) for row in rows] == POSITIONS
    count = 3 + (draws > 255)
    assert sum(map(len, rows)) == 4 * len(rows) + count * len(of) + entry * int((record.weights > 0).sum())
    assert sum(map(len, rows)) - 4 * len(rows) <= encoding.bytes_of_position()[1] * len(of)
    back = encoding.decode(rows)
    assert torch.equal((by_token(back) * draws).round(), (by_token(record) * draws).round())
    assert by_token(back)[0, -1] == 1
    assert (back.entropy - record.entropy).abs().max() < 1.3e-4
    assert (back.temperature, back.vocab_size) == (0.7, vocab_size)


@pytest.mark.parametrize("vocab_size", [1000, 300_000])
def test_importance_weights_come_back_nearly(vocab_size):
    record = SampledTokens.drawn(logits(vocab_size), 50, 1.0, torch.Generator().manual_seed(1), 1.5)
    encoding = SampledEncoding(vocab_size, 50, 1.0, 1.5)
    back = encoding.decode(encoding.encode(record, POSITIONS))
    kept = by_token(record) > math.exp(-24)
    assert kept.any()
    off = by_token(back)[kept] / by_token(record)[kept] - 1
    assert off.abs().max() < (1e-3 if vocab_size <= 2**18 else 4.1e-3)


@pytest.mark.parametrize(("vocab_size", "k"), [(1000, 12), (2**18, 5), (300_000, 5), (7, 50)])
def test_top_tokens_come_back_nearly_and_add_up_to_one(vocab_size, k):
    of = logits(vocab_size, scale=5.0)
    of[2] = -torch.inf
    of[2, 4] = 0.0  # one token is certain, the others cannot be
    of[3, 2] = 200.0  # the others are merely unlikely
    record = TopTokens.of(of, k, 1.3)
    encoding = TopEncoding(vocab_size, k, 1.3)
    rows = encoding.encode(record, POSITIONS)
    assert sum(map(len, rows)) == 4 * len(rows) + len(of) * (2 + 4 * min(k, vocab_size))
    back = encoding.decode(rows)
    assert torch.equal(back.ids, record.ids)
    assert torch.equal(back.log_probs == -torch.inf, record.log_probs == -torch.inf)
    assert torch.equal(back.log_rest == -torch.inf, record.log_rest == -torch.inf)
    total = back.log_probs.exp().double().sum(-1) + back.log_rest.exp()
    assert (total - 1).abs().max() < 1e-6
    likely = record.log_probs > -31
    tolerance = 2.2e-3 if vocab_size <= 2**18 else 8.8e-3
    assert (back.log_probs[likely] - record.log_probs[likely]).abs().max() < tolerance


def test_hidden_states_come_back_in_bfloat16():
    hidden = torch.randn(sum(POSITIONS), 6, generator=torch.Generator().manual_seed(0))
    encoding = HiddenEncoding(vocab_size=1000, width=6)
    rows = encoding.encode(hidden, POSITIONS)
    assert [len(row) for row in rows] == [4 + 12 * n for n in POSITIONS]
    assert torch.equal(encoding.decode(rows), hidden.bfloat16())


def test_likelihoods_come_back_as_they_were():
    record = TokenLikelihoods.of(logits(1000), torch.arange(9), 1.3)
    encoding = LikelihoodEncoding(1000, 1.3)
    rows = encoding.encode(record, POSITIONS)
    assert [len(row) for row in rows] == [4 + 4 * n for n in POSITIONS]
    back = encoding.decode(rows)
    assert torch.equal(back.log_probs, record.log_probs)
    assert (back.temperature, back.vocab_size) == (1.3, 1000)
    for wrong in (0.5, math.nan):
        rows = encoding.encode(TokenLikelihoods(torch.full((9,), wrong), 1.3, 1000), POSITIONS)
        with pytest.raises(ValueError, match="a log-probability above 0, or one that is no number"):
            encoding.decode(rows)


def test_rows_are_read_in_any_order_and_from_memory_at_any_place():
    encoding, record = TopEncoding(1000, 4), TopTokens.of(logits(1000), 4)
    rows = encoding.encode(record, POSITIONS)
    inside = numpy.frombuffer(b"." + b"".join(rows), numpy.uint8)
    last = memoryview(inside)[1 + sum(map(len, rows[:3])) :]  # where no number is aligned
    back = encoding.decode([last, rows[0]])
    assert torch.equal(back.ids, torch.cat([record.ids[8:], record.ids[:3]]))
    assert encoding.decode([]).ids.shape == (0, 4)
    assert SampledEncoding(1000).decode([]).entropy.shape == (0,)
    assert HiddenEncoding(1000, 6).decode([]).shape == (0, 6)


@pytest.mark.parametrize("kind", [SampledTokens, TopTokens])
def test_a_token_that_the_vocabulary_has_not_is_refused(kind):
    record = (SampledTokens.drawn if kind is SampledTokens else TopTokens.of)(logits(1000), 50)
    encoding = SampledEncoding if kind is SampledTokens else TopEncoding
    rows = encoding(1000, 50).encode(record, POSITIONS)
    with pytest.raises(ValueError, match=r"a record has the token 99., of a vocabulary of 900"):
        encoding(900, 50).decode(rows)


@pytest.mark.parametrize(
    "encoding", [SampledEncoding(1000), TopEncoding(1000, 4), HiddenEncoding(1000, 6), LikelihoodEncoding(1000)]
)
def test_bytes_that_are_no_row_are_refused(encoding):
    if encoding.kind == "hidden":
        record = torch.zeros(sum(POSITIONS), 6)
    elif encoding.kind == "likelihood":
        record = TokenLikelihoods(torch.zeros(sum(POSITIONS)), 1.0, 1000)
    else:
        of = logits(1000)
        record = SampledTokens.drawn(of) if encoding.kind == "sampled" else TopTokens.of(of, 4)
    row = encoding.encode(record, POSITIONS)[0]
    for damaged in (b"", row[:-1], row + b"\0", row[:2]):
        with pytest.raises(ValueError, match="record of a row"):
            encoding.decode([damaged])


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        ("dense", {}, "kind=dense: must be one of sampled, top_k, hidden"),
        ("sampled", {"vocab_size": 10, "draws": 5000}, "draws=5000: must be from 1 to 4095"),
        ("top_k", {"vocab_size": 10, "k": 0}, "k=0: must be at least 1"),
        ("top_k", {"vocab_size": 2**21}, "a vocabulary of 2097152 tokens"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(kind, settings, told):
    with pytest.raises(ValueError, match=told):
        encoding_of(kind, settings)
