"""What is made of log-probabilities that a server lists, which does not tell the mass of all other tokens."""

import pytest
import torch

from distill_tune.cache.encoding import LikelihoodEncoding, TopEncoding
from distill_tune.data.batch import Row, joined
from distill_tune.losses import LinearProjection, ReverseKL, TopK, TopTokens, distillation_loss
from distill_tune.losses.signals import DenseLogits
from distill_tune.serve.connection import NoAnswer
from distill_tune.serve.top_answers import blobs_of_likelihoods, record_of

N, V, K = 256, 1000, 20


def kd_of(signal, divergence):
    """Of a student that is less sure."""
    hidden = torch.randn(N, V, generator=torch.Generator().manual_seed(1))
    hidden[:, 0] = 10
    targets = torch.zeros(N, dtype=torch.long)
    head = LinearProjection(torch.eye(V))
    return distillation_loss(hidden, head, targets, signal, kd_ratio=1.0, divergence=divergence).kd.item() / N


@pytest.mark.parametrize(("sure", "tolerance"), [(4, 1e-3), (14, 2e-2), (20, 0.15), (28, 0.15)])
def test_the_rest_of_a_teacher_that_is_sure_is_neither_nothing_nor_noise(sure, tolerance):
    """The reverse KL is the live one as nearly as float32 log-probabilities tell, and never below 0."""
    logits = 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = sure + 9
    values, ids = logits.log_softmax(-1).topk(K)
    listed = [dict(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    record = record_of(listed, TopEncoding(V, K))
    exact = TopTokens.of(logits, K)
    assert (record.log_rest.isfinite() & (record.log_rest < -sure + 3)).all()
    assert (record.log_rest - exact.log_rest).abs().mean() < 1.5
    wanted = kd_of(DenseLogits(logits), TopK(K, ReverseKL()))
    assert kd_of(record, TopK(K, ReverseKL())) == pytest.approx(wanted, rel=tolerance)


def test_nothing_is_left_of_a_vocabulary_that_is_listed_whole():
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    rows = [dict(enumerate(row)) for row in logits.log_softmax(-1).tolist()]
    assert record_of(rows, TopEncoding(8, 8)).log_rest.isneginf().all()


def test_likelihoods_are_those_that_are_listed_and_nothing_else():
    batch, encoding = joined([Row(torch.arange(3), torch.arange(3))]), LikelihoodEncoding(8)
    found = encoding.decode(blobs_of_likelihoods([[-0.25, -9999.0]], batch, encoding)).log_probs
    assert found.tolist() == [-0.25, -torch.inf]
    assert encoding.decode(blobs_of_likelihoods([[1e-6, -1.0]], batch, encoding)).log_probs.tolist() == [0.0, -1.0]
    for wrong, told in (
        ([-1.0], "of .1. positions, where .2."),
        ([0.5, -1.0], "above 0"),
        ([-1.0, torch.nan], "no number"),
    ):
        with pytest.raises(NoAnswer, match=told):
            blobs_of_likelihoods([wrong], batch, encoding)
