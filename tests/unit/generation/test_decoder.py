"""The decoder over models as the recipes have them, against whole forward passes without a cache."""

import copy

import pytest
import torch
from tiny_decoders import BUILT, FREE, PROMPTS, REQUESTS, built, tokens_of

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.generation import Completion, Decoder, Request, Sampling
from distill_tune.models.cached_rows import KeyValueCache

from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

CPU = torch.device("cpu")


def assert_own_answers(model, completions: list[Completion], atol: float = 1e-4, requests=REQUESTS) -> None:
    """Log-probabilities are those of one forward pass over the whole row, without dropout."""
    model.eval()
    for request, completion in zip(requests, completions, strict=True):
        row = torch.tensor([[*request.prompt, *completion.tokens]])
        with torch.no_grad():
            wanted = model(row)[0].log_softmax(-1)
        wanted = wanted[range(len(request.prompt) - 1, row.shape[1] - 1), completion.tokens]
        torch.testing.assert_close(torch.tensor(completion.log_probs), wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("name", BUILT)
def test_torchtunes_own_models(name):
    model = built(name)
    whole = copy.deepcopy(model)
    model.train()
    completions = Decoder(model, {}, FREE).generate(REQUESTS)
    assert [len(completion.tokens) for completion in completions] == [20, 20, 20]
    assert model.training
    assert_own_answers(whole, completions)


def test_a_student_in_training_with_its_head_taken_and_its_layers_checkpointed():
    model = built("llama_with_lora")
    whole = copy.deepcopy(model)
    models.freeze_all_but_adapters(model)
    models.compute_in(model, torch.float32)
    models.take_output_head(model)
    set_activation_checkpointing(model, auto_wrap_policy={TransformerSelfAttentionLayer})
    model.train()
    before = {name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()}
    completions = Decoder(model, {}, FREE).generate(REQUESTS)
    assert_own_answers(whole, completions)
    after = dict(model.named_parameters())
    assert all(
        id(after[name]) == number and torch.equal(after[name], value) for name, (number, value) in before.items()
    )
    assert model(torch.tensor([[5, 6]])).requires_grad  # and it trains on


def test_what_trains_in_float32_answers_in_the_dtype_that_it_computes_in():
    model = built("llama")
    models.freeze_all_but_adapters(model)
    wanted = copy.deepcopy(model)
    for parameter in wanted.parameters():  # and not the tables of the rotary embedding
        parameter.data = parameter.data.bfloat16()
    models.compute_in(model, torch.bfloat16)
    found = Decoder(model, {}, FREE).generate(REQUESTS)
    assert tokens_of(found) == tokens_of(Decoder(wanted, {}, FREE).generate(REQUESTS))
    assert_own_answers(wanted.float(), found, atol=0.05)


def test_an_answer_ends_at_its_end_token_or_its_limit():
    model = built("llama")
    free = Decoder(model, {}, FREE).generate(REQUESTS)
    end = free[0].tokens[7]
    first = free[0].tokens.index(end)
    limited = [
        Request(request.prompt, request.stream, limit) for request, limit in zip(REQUESTS, (20, 1, 5), strict=True)
    ]
    found = Decoder(model, {end}, FREE, max_slots=2).generate(limited)
    assert (found[0].tokens, found[0].finish_reason) == (free[0].tokens[: first + 1], "stop")
    for completion, wanted, limit in zip(found[1:], free[1:], (1, 5), strict=True):
        tokens = wanted.tokens[:limit]
        ended = end in tokens
        assert completion.tokens == (tokens[: tokens.index(end) + 1] if ended else tokens)
        assert completion.finish_reason == ("stop" if ended else "length")


def test_the_model_reads_no_more_than_its_longest_sequence():
    model = built("llama")
    (found,) = Decoder(model, {}, FREE).generate([Request([5] * 60)])
    assert (len(found.tokens), found.finish_reason) == (4, "length")
    with pytest.raises(UserError, match="prompt 2 has 64 tokens; the model reads 64 at most"):
        Decoder(model, {}, FREE).generate([Request([5]), Request([5] * 64)])
    with pytest.raises(UserError, match="prompt 1 has no tokens"):
        Decoder(model, {}, FREE).generate([Request([])])


def test_the_cache_stays_within_its_bytes():
    model = built("llama")
    of_slot = KeyValueCache.bytes_of_slot(model, 9 + 20, torch.float32)
    decoder = Decoder(model, {}, FREE, cache_bytes=2 * of_slot + 10)
    assert tokens_of(decoder.generate(REQUESTS)) == tokens_of(Decoder(model, {}, FREE).generate(REQUESTS))
    cache = decoder._cache
    assert cache.slots == 2
    decoder.generate(REQUESTS)
    assert decoder._cache is cache  # it would be no larger
    with pytest.raises(UserError, match="prompt 1 has 9 tokens and up to 20 to come: its keys and values take"):
        Decoder(model, {}, FREE, cache_bytes=of_slot - 1).generate(REQUESTS)


def test_the_cache_of_a_call_serves_the_next():
    model = built("llama")
    decoder = Decoder(model, {}, FREE)
    found = decoder.generate(REQUESTS)
    cache = decoder._cache
    assert tokens_of(decoder.generate(REQUESTS[:2])) == tokens_of(found[:2])
    assert decoder._cache is cache
    assert decoder.generate([Request([5] * 30)])[0].finish_reason == "length"
    assert decoder._cache is not cache
    assert decoder.generate([]) == []


def test_what_is_compiled_for_training_is_run_as_it_was_written():
    def refused(*arguments: object) -> None:
        raise AssertionError("compiled for an answer")

    model = built("llama")
    wanted = Decoder(model, {}, FREE).generate(REQUESTS)
    for layer in model.layers:
        layer.compile(backend=refused)
    assert tokens_of(Decoder(model, {}, FREE).generate(REQUESTS)) == tokens_of(wanted)


def test_hooks_that_bring_a_layers_weights_are_heeded():
    model = built("llama")
    wanted = Decoder(model, {}, FREE).generate(REQUESTS)
    weight = model.layers[1].mlp.w2.weight
    kept = weight.detach().clone()
    weight.data.zero_()
    model.layers[1].register_forward_pre_hook(lambda module, arguments: [weight.data.copy_(kept)][1:] or None)
    model.layers[1].register_forward_hook(lambda module, arguments, output: [weight.data.zero_()][1:] or None)
    assert tokens_of(Decoder(model, {}, FREE).generate(REQUESTS)) == tokens_of(wanted)


@pytest.mark.torchao
def test_quantised_models_answer():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = built("llama")
    quantize_(model, Int8WeightOnlyConfig())
    whole = copy.deepcopy(model)
    assert_own_answers(whole, Decoder(model, {}, FREE).generate(REQUESTS))


def test_windows_alone_are_kept():
    model = built("gemma2")
    lengths = [keys.shape[2] for keys in KeyValueCache(model, 1, 40, CPU, torch.float32).keys]
    assert lengths == [6, 40]


def test_a_penalty_knows_the_prompt_and_the_answer():
    """Greedy, it is that of transformers' processor, token by token."""
    from transformers import RepetitionPenaltyLogitsProcessor

    model = built("llama")
    found = Decoder(model, {}, Sampling(12, temperature=0, repetition_penalty=1.7), max_slots=2).generate(REQUESTS)
    penalty = RepetitionPenaltyLogitsProcessor(1.7)
    model.eval()
    for request, completion in zip(REQUESTS, found, strict=True):
        row = list(request.prompt)
        for token in completion.tokens:
            with torch.no_grad():
                logits = model(torch.tensor([row]))[:, -1]
            assert int(penalty(torch.tensor([row]), logits).argmax()) == token
            row.append(token)
    assert_own_answers(model, found)


def test_an_answer_in_a_circle_is_cut():
    model = built("llama")
    with torch.no_grad():
        for layer in model.layers:
            layer.attn.output_proj.weight.zero_()
            layer.mlp.w2.weight.zero_()  # each token is followed by itself
    found = Decoder(model, {}, Sampling(20, temperature=0, max_repetitions=4)).generate(REQUESTS)
    assert [(len(of.tokens), of.finish_reason) for of in found] == [(4, "repetition")] * 3


def test_further_tokens_may_end_an_answer():
    model = built("llama")
    free = Decoder(model, {}, FREE).generate(REQUESTS)
    end = free[0].tokens[3]
    sampling = Sampling(20, temperature=1.5, stop_token_ids=[end])
    assert Decoder(model, {1}, sampling).generate(REQUESTS)[0].tokens == free[0].tokens[: free[0].tokens.index(end) + 1]


class Letters:
    """A token is a letter, or two of them."""

    def encode(self, text: str, add_bos: bool, add_eos: bool) -> list[int]:
        return [ord(letter) - 97 for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(97 + token % 26) * (1 + token // 26) for token in tokens)


def test_an_answer_ends_before_a_stop_text():
    model, letters = built("llama"), Letters()
    free = Decoder(model, {}, FREE).generate(REQUESTS)[0]
    text = letters.decode(free.tokens)
    stop = text[9:12]
    sampling = Sampling(20, temperature=1.5, stop=["never in it", stop])
    found = Decoder(model, {}, sampling, tokenizer=letters).generate(REQUESTS)[0]
    assert found.finish_reason == "stop"
    assert found.tokens == free.tokens[: len(found.tokens)]
    assert stop not in letters.decode(found.tokens)
    next_two = letters.decode(free.tokens[: len(found.tokens) + len(stop)])
    assert text.index(stop) - 1 <= len(letters.decode(found.tokens)) <= text.index(stop)
    assert stop in next_two
    assert len(found.log_probs) == len(found.tokens)
    with pytest.raises(UserError, match="stop texts need a tokenizer"):
        Decoder(model, {}, sampling)


def test_tokens_come_one_by_one():
    model = built("llama")
    decoder = Decoder(model, {}, FREE)
    (wanted,) = decoder.generate(REQUESTS[:1])
    stream = decoder.stream(REQUESTS[0])
    assert [next(stream) for _ in range(3)] == list(wanted.tokens[:3])
    assert list(stream) == list(wanted.tokens[3:])


def test_completions_come_as_they_are_done():
    model = built("llama")
    limited = [Request(prompt, 0, limit) for prompt, limit in zip(PROMPTS, (15, 2, 8), strict=True)]
    numbers = []
    for number, _ in Decoder(model, {}, FREE).completions(limited):
        numbers.append(number)
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()  # in the caller's own code
    assert numbers == [1, 2, 0]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_tokens_past_those_that_are_known_are_not_chosen(penalty):
    model, known = built("llama"), 40
    free = Sampling(20, temperature=1.5, repetition_penalty=penalty)
    assert any(token >= known for answer in Decoder(model, {}, free).generate(REQUESTS) for token in answer.tokens)
    for answer in Decoder(model, {}, free, known_tokens=known).generate(REQUESTS):
        assert len(answer.tokens) == 20
        assert max(answer.tokens) < known
