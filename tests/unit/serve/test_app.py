"""The server's answers, in this process: what a teacher that is not well, or a large request, makes of them."""

import asyncio
import dataclasses
import sys
import urllib.parse

import pytest
import torch

from distill_tune.cache.encoding import LikelihoodEncoding
from distill_tune.data.batch import Row, joined
from distill_tune.losses import DenseLogits
from distill_tune.serve.scorer import Scorer
from distill_tune.serve.wire import records_of, rows_as_bytes

pytest.importorskip("starlette")

from distill_tune.serve import app

V = 50
ROW = torch.arange(10, dtype=torch.int32)
BODY = rows_as_bytes(joined([Row(ROW, ROW)]))


def scored(query, logits):
    """Status and body of a request for one row's records."""
    scorer = Scorer(lambda batch: DenseLogits(logits), V, 0, torch.device("cpu"), 100)
    limits = {"most_tokens_of_row": 100, "most_tokens_of_request": 100}
    served = app.application(scorer, model="tiny", content="x", vocabulary=None, projection=None, **limits)
    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": urllib.parse.urlencode(query).encode()}
    sent = []

    async def receive():
        return {"type": "http.request", "body": BODY}

    async def send(message):
        sent.append(message)

    asyncio.run(served(scope | {"headers": []}, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


@pytest.mark.parametrize(
    "query", [{"kind": "top_k"}, {"kind": "sampled"}, {"kind": "sampled", "proposal_temperature": 2}]
)
def test_a_teacher_whose_word_is_no_number_is_refused_and_not_asked_again(query):
    logits = torch.zeros(9, V)
    assert scored(query, logits)[0] == 200
    logits[4, 3] = torch.nan
    status, told = scored(query, logits)
    assert (status, b"is no number" in told) == (422, True)


def test_how_likely_the_rows_own_tokens_are_is_told_of_all_tokens():
    logits = torch.randn(9, V, generator=torch.Generator().manual_seed(0))
    status, body = scored({"kind": "likelihood", "temperature": 2}, logits)
    found = LikelihoodEncoding(V, 2.0).decode(records_of(body, 1)).log_probs
    wanted = (logits / 2).log_softmax(-1).gather(1, ROW[1:, None].long())[:, 0]  # of what follows each position
    assert status == 200 and torch.allclose(found, wanted, atol=1e-6)
    status, told = scored({"kind": "likelihood", "vocab_size": 5}, logits)
    assert (status, b"vocab_size: kind likelihood has temperature" in told) == (400, True)


def test_an_answer_is_bounded_by_its_positions_and_what_each_has(monkeypatch):
    logits = torch.zeros(9, V)
    monkeypatch.setattr(app, "MOST_BYTES", 9 * (2 + 4 * 5))
    status, body = scored({"kind": "top_k", "k": 5}, logits)
    assert status == 200 and len(records_of(body, 1)) == 1
    status, told = scored({"kind": "top_k", "k": 6}, logits)
    assert (status, b"9 positions of kind top_k: an answer has 198 bytes at most" in told) == (413, True)


@pytest.mark.parametrize(
    ("others", "told"),
    [
        (2, b"others has 9 tokens, where 2 of each of 9 are asked for"),
        (49, b"k and others are more than the 50 tokens that there are"),
        (2000, b"others=2000: must be from 0 to 1024"),
        (-1, b"others=-1: must be from 0 to 1024"),
    ],
)
def test_tokens_that_are_named_for_each_position_are_checked(monkeypatch, others, told):
    batch = joined([Row(ROW, ROW)])
    named = rows_as_bytes(dataclasses.replace(batch, likeliest=torch.full((9, 1), 7)))
    monkeypatch.setattr(sys.modules[__name__], "BODY", named)
    query = {"kind": "top_k", "k": 5}
    assert scored(query | {"others": 1}, torch.zeros(9, V))[0] == 200
    status, body = scored(query | {"others": others}, torch.zeros(9, V))
    assert (status, told in body) == (400, True)
