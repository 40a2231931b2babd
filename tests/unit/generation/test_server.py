"""A server as generator, by a stand-in that answers as vLLM's documentation has it."""

import json
import re
import time
import weakref

import pytest
import torch
from loopback import Reply
from omegaconf import OmegaConf
from stand_in_engines import StandInSGLang, StandInVLLM
from tiny_tokenizer import write_tokenizer

from distill_tune import teachers
from distill_tune.data import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.generation import Decoder, Request, Sampling, stream_of
from distill_tune.generation.server import Server, ServerDecoder
from distill_tune.serve import requests as under_way

PROMPTS = [[5, 6, 7], [60, 61], [9, 200, 31, 40, 41, 5], [60, 61]]
LIKELIEST = Sampling(max_new_tokens=7, temperature=0)
SAMPLED = Sampling(max_new_tokens=7, temperature=1.5, top_k=100, top_p=0.95, min_p=0.001, repetition_penalty=1.1)
END = 2


@pytest.fixture(scope="module")
def live(teacher_folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)})
    teacher = teachers.build_teacher(component)
    teacher.load(None, torch.device("cpu"))
    return teacher


@pytest.fixture(scope="module")
def tokenizer(teacher_folder):
    return hf_tokenizer(str(teacher_folder))


class Faulty(StandInVLLM):
    """Behind its ``first`` completions it has faults, one an answer: a reply, None for none, what changes an answer."""

    faults, first = (), 0

    def _reply(self, method, path, body):
        if path != "/v1/completions" or "prompt_logprobs" in json.loads(body) or not self.faults:
            return super()._reply(method, path, body)
        self.first -= 1
        if self.first >= 0:
            return super()._reply(method, path, body)
        fault, *self.faults = self.faults
        if not callable(fault):
            return fault
        content = json.loads(super()._reply(method, path, body).content)
        fault(content["choices"][0])
        return Reply(200, json.dumps(content).encode())


@pytest.fixture
def started(live, tokenizer):
    found = []

    def start(kind=StandInVLLM, its_tokenizer=tokenizer, **settings):
        found.append(kind(live, its_tokenizer and its_tokenizer.transformers_tokenizer, **settings))
        return found[-1]

    yield start
    for server in found:
        server.close()


@pytest.fixture(autouse=True)
def without_waits(monkeypatch):
    monkeypatch.setattr(under_way, "_FIRST_WAIT", 0.001)


def requests():
    return [Request(prompt, stream_of(3, row)) for row, prompt in enumerate(PROMPTS)]


def decoder(*servers, sampling=SAMPLED, ends=(END,), tokenizer=None, **settings):
    server = Server([one.url for one in servers], **{"retries": 1} | settings)
    return ServerDecoder(server, ends, sampling, tokenizer=tokenizer)


def test_the_likeliest_answers_and_their_log_probabilities_are_those_of_our_decoder(started, live, tokenizer):
    wanted = Decoder(live.model, {END}, LIKELIEST).generate(requests())
    found = decoder(started(), sampling=LIKELIEST, tokenizer=tokenizer).generate(requests())
    assert [(one.tokens, one.finish_reason) for one in found] == [(one.tokens, one.finish_reason) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_a_sample_depends_on_its_stream_alone(started):
    server = started()
    found = decoder(server).generate(requests())
    assert decoder(server, concurrency=1).generate(requests()[::-1])[::-1] == found
    assert found[1].tokens != found[3].tokens  # of one prompt


def test_an_answer_ends_at_our_ends_and_limits_not_at_the_servers(started):
    server = started()
    free = decoder(server, ends=()).generate(requests())
    server.eos = free[0].tokens[1]
    assert decoder(server, ends=()).generate(requests()) == free
    (cut,) = decoder(server, ends=()).generate([Request(PROMPTS[0], stream_of(3, 0), max_new_tokens=3)])
    assert (cut.tokens, cut.finish_reason) == (free[0].tokens[:3], "length")
    (ended,) = decoder(server, ends={free[0].tokens[4]}).generate(requests()[:1])
    end = free[0].tokens.index(free[0].tokens[4])
    assert (ended.tokens, ended.finish_reason) == (free[0].tokens[: end + 1], "stop")


def test_an_answer_ends_before_a_stop_text(started, tokenizer):
    server = started()
    whole = decoder(server, ends=()).generate(requests())[0]
    text = tokenizer.decode(whole.tokens[3:5])
    sampling = Sampling(**{**SAMPLED.__dict__, "stop": [text]})
    found = decoder(server, ends=(), sampling=sampling, tokenizer=tokenizer).generate(requests())[0]
    assert found.finish_reason == "stop"
    assert found.tokens == whole.tokens[: len(found.tokens)]
    assert len(found.tokens) < 5
    assert text not in tokenizer.decode(found.tokens)


def test_an_answer_that_goes_round_in_circles_is_cut_as_our_decoder_cuts_it(started, live):
    sampling = Sampling(max_new_tokens=40, temperature=0, max_repetitions=2)
    wanted = Decoder(live.model, (), sampling).generate(requests())
    found = decoder(started(), ends=(), sampling=sampling).generate(requests())
    assert [(one.tokens, one.finish_reason) for one in found] == [(one.tokens, one.finish_reason) for one in wanted]
    assert "repetition" in {one.finish_reason for one in found}


def test_log_probabilities_after_temperature_are_refused_where_there_is_one(started):
    server = started(heeds_temperature=True)
    with pytest.raises(UserError, match=rf"url={server.url}: tells .* start vLLM with --logprobs-mode raw_logprobs"):
        decoder(server).generate(requests())
    plain = Sampling(max_new_tokens=4)
    assert len(decoder(server, sampling=plain).generate(requests())) == len(PROMPTS)


def test_a_server_of_other_tokens_is_refused(started, tokenizer, tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"prompts have tokens that are others to tiny: 5 \(.*set tokenizer.path"):
        decoder(started(its_tokenizer=hf_tokenizer(str(tmp_path))), tokenizer=tokenizer).generate(requests())
    with pytest.raises(UserError, match="does not tell the text of tokens"):
        decoder(started(its_tokenizer=None), tokenizer=tokenizer).generate(requests())


def test_what_is_wrong_with_a_server_is_told_before_an_answer(started):
    with pytest.raises(UserError, match="does not serve model=large; there are tiny"):
        decoder(started(), model="large").generate(requests())
    with pytest.raises(UserError, match=re.escape("is none of vllm (vllm: /v1/models: is of sglang)")):
        decoder(started(StandInSGLang)).generate(requests())
    gone = started()
    gone.close()
    with pytest.raises(UserError, match=rf"url={gone.url}: no server answers \(.*\); start one: vllm serve MODEL"):
        decoder(gone).generate(requests())


def test_a_dead_server_is_left_out_where_another_answers(started, capsys):
    gone, server = started(), started()
    gone.close()
    assert decoder(gone, server).generate(requests()) == decoder(server).generate(requests())
    assert f"generator at {gone.url}: left out (" in capsys.readouterr().out


def without_ids(choice):
    del choice["token_ids"]


def aborted(choice):
    choice["finish_reason"] = "abort"


def shortened(choice):
    choice["logprobs"]["token_logprobs"].pop()


@pytest.mark.parametrize(
    "fault",
    [
        Reply(503, b'{"error": {"message": "the engine is paused"}}'),
        Reply(429, b"{}"),
        Reply(200, b"{"),
        Reply(200, b'{"choices": []}'),
        None,
        without_ids,
        aborted,
        shortened,
    ],
)
def test_a_request_without_an_answer_is_asked_again(started, fault):
    wanted = decoder(started()).generate(requests())
    server = started(Faulty)
    server.faults, server.first = [fault], 2 + 1  # behind the two that prove log-probabilities, and an answer
    assert decoder(server, concurrency=1).generate(requests()) == wanted
    assert not server.faults


def test_a_server_that_goes_on_failing_ends_generation_and_says_why(started):
    server = started(Faulty)
    server.faults, server.first = [aborted] * 20, 2 + 1
    found = decoder(server, concurrency=1).completions(requests())
    next(found)
    with pytest.raises(UserError, match=rf"no server answers any more: {server.url}.*finish_reason abort"):
        list(found)


def test_a_prompt_that_does_not_fit_is_named(started):
    server = started(longest=12)
    with pytest.raises(UserError, match="prompt 2 has 12 tokens; the server's model reads 12 at most"):
        decoder(server).generate([Request([5] * 3), Request([5] * 12)])
    (answer,) = decoder(server, ends=()).generate([Request([5] * 8)])
    assert (len(answer.tokens), answer.finish_reason) == (4, "length")
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        decoder(server).generate([Request([])])


def test_who_stops_reading_has_no_more_asked_for(started):
    server = started()
    found = decoder(server, concurrency=1).completions(requests() * 10)
    next(found)
    found.close()
    asked = len(server.asked)
    time.sleep(0.2)  # in which it would answer ten more
    assert len(server.asked) <= asked + 1


def test_an_answer_that_is_handed_on_is_not_kept(started, tokenizer):
    decoder = ServerDecoder(Server(started().url, concurrency=1), [END], LIKELIEST, tokenizer=tokenizer)
    handed_on = []
    for _, completion in decoder.completions([Request([5, 6, token], 0) for token in range(10, 18)]):
        handed_on.append(weakref.ref(completion))
        del completion
        assert sum(one() is not None for one in handed_on) <= 2  # the thread's that asks, and the last one
