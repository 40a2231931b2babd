"""How a request is asked again."""

import types

import pytest
import torch

from distill_tune.cache.encoding import TopEncoding
from distill_tune.data.batch import Row, joined
from distill_tune.losses import TopTokens
from distill_tune.serve.connection import Busy, NoAnswer, Refused
from distill_tune.serve.requests import AllLost, Requests

BATCH = joined([Row(torch.tensor([1, 2]), torch.tensor([-100, 2]))])
ENCODING = TopEncoding(10, 2)


def row_of(token):
    """The record of a position whose teacher is sure of a token."""
    ids, log_probs = torch.tensor([[token, 5]]), torch.tensor([[0.0, -torch.inf]])
    return ENCODING.encode(TopTokens(ids, log_probs, torch.tensor([-torch.inf]), 1.0, 10), [1])[0]


ROW = row_of(3)


class Scripted:
    """Answers with what comes next in a list, at its end with a record: an error is raised."""

    def __init__(self, url, *script):
        self.server, self.script, self.asked = types.SimpleNamespace(url=url), list(script), 0

    def records(self, batch, encoding, seed):
        self.asked += 1
        found = self.script.pop(0) if self.script else [ROW]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def asked():
    def ask(*engines, retries=3, concurrency=1):
        waits, said = [], []
        requests = Requests(engines, concurrency=concurrency, retries=retries, say=said.append, wait=waits.append)
        answer = requests.ask(BATCH, ENCODING, 0)
        return lambda: answer.result().rows, waits, said

    return ask


def test_waits_double_and_the_answer_comes(asked):
    answer, waits, said = asked(Scripted("a", *[NoAnswer("503")] * 3))
    assert answer() == [ROW]
    assert waits == [0.25, 0.5, 1.0]
    assert said == []


def test_another_server_is_asked_at_once(asked):
    answer, waits, _ = asked(Scripted("a", NoAnswer("503")), Scripted("b", NoAnswer("503")))
    assert answer() == [ROW]
    assert waits == [0.25]  # once both have failed


def test_one_that_refuses_is_left_out_at_once(asked):
    refusing, other = Scripted("a", Refused(400, "no such kind")), Scripted("b")
    answer, waits, said = asked(refusing, other)
    assert answer() == [ROW]
    assert waits == []
    assert said == ["teacher at a: left out (400: no such kind); 1 of 2 answer"]


def test_after_its_tries_it_is_left_out_and_then_all_are_lost(asked):
    answer, waits, said = asked(Scripted("a", *[NoAnswer("503")] * 9))
    with pytest.raises(AllLost, match="a: 503, 4 times in a row"):
        answer()
    assert waits == [0.25, 0.5, 1.0]
    assert said == ["teacher at a: left out (503, 4 times in a row); 0 of 1 answer"]


def test_one_that_is_busy_is_waited_for_and_told_once(asked):
    busy = Scripted("a", *[Busy("429")] * 9)
    answer, waits, said = asked(busy)
    assert answer() == [ROW]
    assert waits[:4] == [0.25, 0.5, 1.0, 2.0] and max(waits) == 30.0
    assert said == ["teacher at a: busy (429); the run waits for it"]


def test_one_that_is_busy_for_too_long_has_failed(asked):
    answer, waits, said = asked(Scripted("a", *[Busy("429")] * 99))
    with pytest.raises(AllLost, match="a: 429, 4 times in a row"):
        answer()
    assert 300 <= sum(waits) < 450
    assert len(said) == 2


def test_another_server_is_asked_while_one_is_busy(asked):
    answer, waits, _ = asked(Scripted("a", Busy("429")), Scripted("b"))
    assert answer() == [ROW]
    assert waits == []


@pytest.mark.parametrize("wrong", [[], [ROW, ROW], [(2).to_bytes(4, "little")], [b"\0"], [ROW[:-1]], [row_of(10)]])
def test_an_answer_of_other_positions_or_tokens_is_no_answer(asked, wrong):
    server = Scripted("a", wrong)
    answer, _, _ = asked(server)
    assert answer() == [ROW]
    assert server.asked == 2
