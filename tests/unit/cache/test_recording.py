"""Records are made from a signal in pieces, and do not depend on what stands beside a row."""

import pytest
import torch

from distill_tune.cache import (
    HiddenEncoding,
    LikelihoodEncoding,
    SampledEncoding,
    TopEncoding,
    encoded,
    recording,
    scores_of,
)
from distill_tune.errors import UserError
from distill_tune.losses import DenseLogits, HiddenStates, LinearProjection, MixtureOfTeachers, SampledTokens, TopTokens

COUNTS = [3, 700, 0, 20]
DIGESTS = [bytes([row]) * 16 for row in range(4)]


@pytest.fixture(scope="module")
def logits():
    return torch.randn(sum(COUNTS), 90, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("encoding", [SampledEncoding(90, 20, 0.8), SampledEncoding(90, 20, 1.0, 1.5)])
def test_draws_are_a_function_of_the_row_alone(logits, encoding, monkeypatch):
    together = encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=1)
    alone = encoded(encoding, DenseLogits(logits[3:703]), [DIGESTS[1]], [700], seed=1)
    assert alone == together[1:2]
    order = torch.cat([logits[703:], logits[:3]])
    assert encoded(encoding, DenseLogits(order), [DIGESTS[3], DIGESTS[0]], [20, 3], seed=1) == [
        together[3],
        together[0],
    ]
    monkeypatch.setattr(recording, "chunk_rows", lambda *_: 1)  # as where logits fill the memory
    assert encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=1) == together
    assert encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=2)[1] != together[1]
    assert encoded(encoding, DenseLogits(logits), DIGESTS[::-1], COUNTS, seed=1)[1] != together[1]


def test_no_two_pieces_of_a_row_have_the_same_draws():
    same = torch.zeros(600, 90)
    record = SampledEncoding(90, 20).decode(encoded(SampledEncoding(90, 20), DenseLogits(same), DIGESTS[:1], [600], 0))
    ids = [record.ids[start : start + 88].tolist() for start in (0, 256, 512)]
    assert ids[0] != ids[1] != ids[2] != ids[0]


def test_draws_are_those_of_the_teacher(logits):
    few = logits[:3].repeat(400, 1)
    record = SampledEncoding(90, 60).decode(
        encoded(SampledEncoding(90, 60), DenseLogits(few), DIGESTS[:1], [1200], seed=0)
    )
    shares = torch.zeros(1200, 90).scatter_add_(1, record.ids.long(), record.weights).view(400, 3, 90).mean(0)
    assert (shares - logits[:3].softmax(-1)).abs().max() < 4e-3  # 24,000 draws
    assert torch.allclose(record.entropy[:3], SampledTokens.drawn(logits[:3]).entropy, atol=2e-4)


@pytest.mark.parametrize("encoding", [SampledEncoding(80, 20, 0.8), SampledEncoding(80, 20, 1.0, 1.5)])
def test_draws_are_scored_by_the_distribution_that_they_came_from_and_by_another_of_the_same_entropy(logits, encoding):
    record = encoding.decode(encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=0))
    scores = scores_of(record, DenseLogits(torch.cat([logits[:5], logits])), 5)
    assert scores.shape == (sum(COUNTS),)
    assert abs(scores.mean()) < 4 * scores.std() / len(scores) ** 0.5
    assert abs(scores.mean()) < 0.02
    another = logits.clone()
    another[:, :80] = logits[:, :80].flip(1)
    wanted = (logits[:, :80] / encoding.temperature).log_softmax(-1)
    gap = wanted - (another[:, :80] / encoding.temperature).log_softmax(-1)
    assert scores_of(record, DenseLogits(another), 0).mean().item() == pytest.approx(
        (wanted.exp() * gap).sum(-1).mean().item(), rel=0.05
    )


def test_top_tokens_are_those_of_all_logits_in_whatever_chunks(logits, monkeypatch):
    encoding = TopEncoding(80, 6, 0.7)  # of the 80 tokens that the student has, too
    wanted = encoding.encode(TopTokens.of(logits[:, :80], 6, 0.7), COUNTS)
    assert encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=0) == wanted
    monkeypatch.setattr(recording, "chunk_rows", lambda *_: 1)
    assert encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=0) == wanted


@pytest.mark.parametrize(
    "encoding",
    [SampledEncoding(90, 20), SampledEncoding(90, 20, 1.0, 0.5), TopEncoding(90, 6), TopEncoding(90, 90)],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(logits, encoding, value):
    logits = logits.clone()
    logits[5, 7] = value
    with pytest.raises(UserError, match="what it says of a row is no number"):
        encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_hidden_state_that_is_no_number_is_refused(value):
    hidden = torch.zeros(sum(COUNTS), 4, dtype=torch.float16)
    hidden[5, 2] = value
    with pytest.raises(UserError, match="what it says of a row is no number"):
        encoded(
            HiddenEncoding(90, 4), HiddenStates(hidden, LinearProjection(torch.zeros(90, 4)), ()), DIGESTS, COUNTS, 0
        )


def test_a_token_that_is_ruled_out_is_a_number(logits):
    logits = logits.clone()
    logits[:, 7] = -torch.inf
    for encoding in (SampledEncoding(90, 20), TopEncoding(90, 90)):
        record = encoding.decode(encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=0))
        assert not (record.is_token & (record.ids == 7)).any()


def test_a_cap_is_applied_before_anything_is_kept(logits):
    encoding = TopEncoding(90, 6)
    found = encoding.decode(encoded(encoding, DenseLogits(logits, softcap=2.0), DIGESTS, COUNTS, seed=0))
    wanted = TopTokens.of((logits / 2).tanh() * 2, 6)
    assert (found.log_probs - wanted.log_probs).abs().max() < 3e-3


def test_how_likely_the_rows_own_tokens_are_is_kept_in_whatever_chunks(logits, monkeypatch):
    encoding, own = LikelihoodEncoding(90, 0.7), torch.arange(sum(COUNTS)) % 90
    wanted = ((logits.double() / 2).tanh() * 2 / 0.7).log_softmax(-1)[torch.arange(len(own)), own]
    for _ in range(2):
        rows = encoded(encoding, DenseLogits(logits, softcap=2.0), DIGESTS, COUNTS, seed=0, targets=own)
        torch.testing.assert_close(encoding.decode(rows).log_probs.double(), wanted, rtol=1e-6, atol=1e-6)
        monkeypatch.setattr(recording, "chunk_rows", lambda *_: 1)
    logits = logits.clone()
    logits[5, 7] = torch.nan
    with pytest.raises(UserError, match="what it says of a row is no number"):
        encoded(encoding, DenseLogits(logits), DIGESTS, COUNTS, seed=0, targets=own)


def test_several_teachers_are_one_distribution(logits):
    mixture = MixtureOfTeachers([DenseLogits(logits), DenseLogits(logits.flip(1))], [0.3, 0.7])
    encoding = TopEncoding(90, 90)
    found = encoding.decode(encoded(encoding, mixture, DIGESTS, COUNTS, seed=0))
    wanted = 0.3 * logits.softmax(-1) + 0.7 * logits.flip(1).softmax(-1)
    dense = torch.zeros_like(wanted).scatter(1, found.ids.long(), found.log_probs.exp())
    assert (dense - wanted).abs().max() < 2e-3


def test_hidden_states_are_kept_as_they_are():
    hidden = torch.randn(sum(COUNTS), 8).bfloat16()
    signal = HiddenStates(hidden, LinearProjection(torch.randn(90, 8)))
    encoding = HiddenEncoding(90, 8)
    assert torch.equal(encoding.decode(encoded(encoding, signal, DIGESTS, COUNTS, seed=0)), hidden)


def test_a_micro_batch_without_a_row_has_no_record(logits):
    for encoding in (SampledEncoding(90), TopEncoding(90, 4)):
        assert encoded(encoding, DenseLogits(logits[:0]), [], [], seed=0) == []
        (row,) = encoded(encoding, DenseLogits(logits[:0]), DIGESTS[:1], [0], seed=0)
        assert len(encoding.decode([row]).ids) == 0
