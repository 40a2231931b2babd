"""Models of transformers as generators: against their own greedy answers, against our decoder, alone and together."""

import threading

import pytest
import torch
import transformers
from omegaconf import OmegaConf
from tiny import VOCAB_SIZE

from distill_tune import models
from distill_tune.data import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.generation import Decoder, Request, Sampling, stream_of
from distill_tune.generation.hf import HuggingFaceDecoder
from distill_tune.generation.rows import AnsweredRow

SHAPE = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
MORE = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=96, n_layer=2, n_embd=32, n_head=4, n_positions=64),  # learned positions
    "gemma2": transformers.Gemma2Config(**SHAPE, **MORE, head_dim=8, sliding_window=4, final_logit_softcapping=5.0),
    "mamba": transformers.MambaConfig(**SHAPE | {"num_hidden_layers": 1}, state_size=4),  # recurrent
}
PROMPTS = [torch.randint(3, 96, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (3, 9, 5, 9, 1)]
SAMPLED = Sampling(max_new_tokens=8, temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.2)


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return made(request.param)


def made(name):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def requests(**settings):
    return [Request(prompt, stream_of(7, row), **settings) for row, prompt in enumerate(PROMPTS)]


def test_greedy_answers_are_transformers_own_whatever_its_generation_config_says(model):
    found = HuggingFaceDecoder(model, {2}, Sampling(max_new_tokens=6, temperature=0)).generate(requests())
    for prompt, answer in zip(PROMPTS, found, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=2, pad_token_id=0
        )
        assert list(answer.tokens) == wanted[0, len(prompt) :].tolist()
        assert answer.finish_reason == ("stop" if answer.tokens[-1] == 2 else "length")
    config = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=9.0, repetition_penalty=3.0, suppress_tokens=list(range(50)), max_new_tokens=1
    )
    try:
        again = HuggingFaceDecoder(model, {2}, Sampling(max_new_tokens=6, temperature=0)).generate(requests())
        assert model.generation_config.temperature == 9.0
    finally:
        model.generation_config = config
    assert again == found


def test_an_answer_is_the_same_alone_and_among_others(model):
    alone = [HuggingFaceDecoder(model, {2}, SAMPLED).generate([one])[0] for one in requests()]
    for max_slots in (2, 64):
        together = HuggingFaceDecoder(model, {2}, SAMPLED, max_slots=max_slots).generate(requests())
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
    assert len({answer.tokens for answer in alone}) == len(alone)


def test_log_probabilities_are_the_models_own_at_temperature_1(model):
    for prompt, answer in zip(PROMPTS, HuggingFaceDecoder(model, {2}, SAMPLED).generate(requests()), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer.tokens]])).logits[0, len(prompt) - 1 : -1]
        wanted = logits.float().log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        assert answer.log_probs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_tokens_and_log_probabilities_are_those_of_our_decoder(student_folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(student_folder)})
    checkpoint = models.open_checkpoint("model", component, None)
    ours = models.load_model(component, checkpoint, torch.float32, torch.device("cpu"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float32)
    asked = [Request([one % VOCAB_SIZE for one in prompt], stream_of(row)) for row, prompt in enumerate(PROMPTS)]
    wanted = Decoder(ours, {2}, SAMPLED).generate(asked)
    found = HuggingFaceDecoder(theirs, {2}, SAMPLED).generate(asked)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_each_request_has_its_limit_and_ends_at_any_of_the_ends():
    model = made("gpt2")
    free = HuggingFaceDecoder(model, (), SAMPLED).generate(requests(max_new_tokens=8))
    assert all(len(answer.tokens) == 8 and answer.finish_reason == "length" for answer in free)
    ends = {free[0].tokens[3], free[1].tokens[5]}
    asked = [Request(one.prompt, one.stream, limit) for one, limit in zip(requests(), (8, 8, 1, 5, 8), strict=True)]
    found = HuggingFaceDecoder(model, ends, SAMPLED).generate(asked)
    for answer, whole, request in zip(found, free, asked, strict=True):
        end = next((at for at, token in enumerate(whole.tokens) if token in ends), 99)
        is_cut = end >= request.max_new_tokens
        assert answer.tokens == whole.tokens[: request.max_new_tokens if is_cut else end + 1]
        assert answer.finish_reason == ("length" if is_cut else "stop")


def test_an_answer_ends_before_a_stop_text(student_folder):
    tokenizer, prompt = hf_tokenizer(str(student_folder)), Request([5, 6, 7], stream_of(1))
    model = transformers.AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float32)
    (whole,) = HuggingFaceDecoder(model, (), Sampling(32)).generate([prompt])
    text = next(text for token in whole.tokens[4:] if len(text := tokenizer.decode([token]).strip()) > 1)
    (found,) = HuggingFaceDecoder(model, (), Sampling(32, stop=[text]), tokenizer=tokenizer).generate([prompt])
    assert found.finish_reason == "stop"
    assert found.tokens == whole.tokens[: len(found.tokens)]
    assert text not in tokenizer.decode(found.tokens)
    assert text in tokenizer.decode(whole.tokens[: len(found.tokens) + 2])


def test_a_prompt_that_does_not_fit_is_named():
    decoder = HuggingFaceDecoder(made("gpt2"), {2})
    with pytest.raises(UserError, match="prompt 2 has 64 tokens; the model reads 64 at most"):
        decoder.generate([Request([3]), Request([3] * 64)])
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        decoder.generate([Request([])])
    (answer,) = HuggingFaceDecoder(decoder._model, ()).generate([Request([3] * 60)])
    assert (len(answer.tokens), answer.finish_reason) == (4, "length")


def test_a_prompt_near_the_models_length_is_answered_among_others():
    model = made("gpt2")  # of 64 learned positions
    asked = [Request([5] * count, stream_of(1, count)) for count in (62, 2, 60, 9)]
    decoder = HuggingFaceDecoder(model, (), Sampling(20, repetition_penalty=1.2))
    found = decoder.generate(asked)
    assert [len(answer.tokens) for answer in found] == [2, 20, 4, 20]
    for answer, request in zip(found, asked, strict=True):
        assert answer.tokens == decoder.generate([request])[0].tokens


def test_an_answer_is_handed_on_before_the_longest_of_its_batch_is_done():
    model, has_first, calls = made("gpt2"), threading.Event(), 0

    def wait(*ignored):
        nonlocal calls
        calls += 1
        assert calls < 4 or has_first.wait(30)

    model.register_forward_hook(wait)
    limits = {0: 20, 1: 1, 2: 20}
    asked = [Request([5, 6, 7], number, limit) for number, limit in limits.items()]
    coming = HuggingFaceDecoder(model, []).completions(asked)
    number, completion = next(coming)
    has_first.set()
    assert (number, len(completion.tokens)) == (1, 1)
    assert {number: len(completion.tokens) for number, completion in coming} == {0: 20, 2: 20}


def test_a_stream_gives_tokens_as_they_come_and_ends_with_its_reader(monkeypatch):
    decoder, chosen = HuggingFaceDecoder(made("gpt2"), (), Sampling(40)), []
    add = AnsweredRow.add
    monkeypatch.setattr(AnsweredRow, "add", lambda *arguments: (chosen.append(arguments[1]), add(*arguments)))
    request = Request(PROMPTS[0], stream_of(3), 20)
    assert list(decoder.stream(request)) == chosen
    assert decoder.generate([request])[0].tokens == tuple(chosen[:20])
    chosen.clear()
    reader = decoder.stream(request)
    next(reader)
    reader.close()
    assert len(chosen) < 20


def test_an_answer_that_goes_round_in_circles_is_cut_and_more_tokens_may_end_it():
    model, prompt = made("gpt2"), Request(PROMPTS[0])
    (whole,) = HuggingFaceDecoder(model, (), Sampling(40, temperature=0)).generate([prompt])
    (cut,) = HuggingFaceDecoder(model, (), Sampling(40, temperature=0, max_repetitions=2)).generate([prompt])
    assert cut.finish_reason == "repetition"
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert len(cut.tokens) < 40
    (ended,) = HuggingFaceDecoder(model, (), Sampling(40, temperature=0, stop_token_ids=[whole.tokens[1]])).generate(
        [prompt]
    )
    assert ended.finish_reason == "stop"
    assert len(ended.tokens) <= 2


def test_tokens_past_those_that_are_known_are_not_chosen():
    model, free = made("gpt2"), Sampling(12, temperature=1.5, repetition_penalty=1.2)
    assert max(token for one in HuggingFaceDecoder(model, (), free).generate(requests()) for token in one.tokens) >= 40
    for answer in HuggingFaceDecoder(model, (), free, known_tokens=40).generate(requests()):
        assert max(answer.tokens) < 40
