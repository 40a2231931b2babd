"""What several servers say of a known sentence, by engines that answer from logits."""

import types

import pytest
import torch

from distill_tune.errors import UserError
from distill_tune.losses import TopTokens
from distill_tune.serve.connection import Refused, Server
from distill_tune.serve.engine import About
from distill_tune.serve.probe import require_known_answer

V, K = 200, 20
TOKENS = types.SimpleNamespace(sentence=list(range(3, 30)))
LOGITS = 3 * torch.randn(len(TOKENS.sentence) - 1, V, generator=torch.Generator().manual_seed(0))


class Answering:
    about = About("vllm", "m", ("top_k",))

    def __init__(self, url, logits):
        self.server, self._logits = Server(url), logits

    def records(self, batch, encoding, seed):
        if self._logits is None:
            raise Refused(400, "another reason")
        return encoding.encode(TopTokens.of(self._logits, encoding.k), batch.num_supervised)


def known(*of_each):
    engines = [Answering(f"http://server{number}:1", logits) for number, logits in enumerate(of_each)]
    return require_known_answer(engines, TOKENS, V, K)


@pytest.mark.parametrize(
    "other", [LOGITS.roll(1, 1), LOGITS.roll(1, 0), LOGITS * 1.2, -LOGITS], ids=["tokens", "places", "sharper", "least"]
)
def test_servers_that_give_the_same_tokens_other_probabilities_are_told(other):
    with pytest.raises(UserError, match=r"url=http://server1:1: does not serve the same teacher as http://server0:1"):
        known(LOGITS, other)


def test_rounding_and_two_tokens_that_are_as_likely_are_no_difference():
    even = LOGITS.clone()
    even[:, 0] = even[:, 1] = even.amax(-1) + 1
    other = even.clone()
    other[:, 1] += 1e-3  # the other comes first
    assert known(even, other).nats == pytest.approx(known(even).nats, abs=1e-3)
    known(LOGITS, LOGITS.bfloat16().float())


def test_the_server_that_fails_is_the_one_that_is_told():
    with pytest.raises(UserError, match="url=http://server1:1: k=20: 400: another reason"):
        known(LOGITS, None)
