"""Answers of every architecture against transformers' own generation, with the cache and without."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, write_architecture
from omegaconf import OmegaConf

from distill_tune import models
from distill_tune.generation import Completion, Decoder, Request, Sampling, stream_of

CPU = torch.device("cpu")
LENGTHS = (20, 3, 11, 1, 33)  # of prompts: shorter and longer than the windows, which have 8
NEW = 25


def loaded(folder: Path, component: str = "from_hf", **arguments: object):
    config = OmegaConf.create({"_component_": f"distill_tune.models.{component}", "path": str(folder), **arguments})
    checkpoint = models.open_checkpoint("model", config, None)
    return models.load_model(config, checkpoint, torch.float32, CPU)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 96, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_architecture(tmp_path_factory.mktemp("generation") / request.param, request.param)


def test_the_likeliest_tokens_are_those_of_transformers(folder):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    decoder = Decoder(loaded(folder), {2}, Sampling(NEW, temperature=0), max_slots=3)
    found = decoder.generate([Request(prompt) for prompt in prompts()])
    for prompt, completion in zip(prompts(), found, strict=True):
        wanted = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=2, pad_token_id=0
        )[0, len(prompt) :]
        assert list(completion.tokens) == wanted.tolist()
        assert completion.finish_reason == ("stop" if wanted[-1] == 2 else "length")
        assert_log_probs(theirs, prompt, completion)


def assert_log_probs(model, prompt: list[int], completion: Completion) -> None:
    """Of each token, as the whole row gives it at once."""
    row = torch.tensor([prompt + list(completion.tokens)])
    with torch.no_grad():
        logits = getattr(found := model(row), "logits", found)[0].double()
    wanted = logits.log_softmax(-1)[range(len(prompt) - 1, row.shape[1] - 1), row[0, len(prompt) :]]
    torch.testing.assert_close(torch.tensor(completion.log_probs).double(), wanted, rtol=0, atol=1e-4)


def test_a_sample_depends_on_its_stream_alone(folder):
    """Not on slots, neighbours or their order; several samples of a prompt read it once and differ."""
    model = loaded(folder)
    requests = [Request(prompt, stream_of(7, row, sample)) for row, prompt in enumerate(prompts()) for sample in (0, 1)]
    found = Decoder(model, {2}, Sampling(NEW, temperature=3)).generate(requests)
    few_slots = Decoder(model, {2}, Sampling(NEW, temperature=3), max_slots=3).generate(requests[::-1])[::-1]
    alone = [Decoder(model, {2}, Sampling(NEW, temperature=3)).generate([request])[0] for request in requests[:4]]
    assert [of.tokens for of in few_slots] == [of.tokens for of in found]
    assert [of.tokens for of in alone] == [of.tokens for of in found[:4]]
    assert all(first.tokens != second.tokens for first, second in zip(found[::2], found[1::2], strict=True))
    for request, completion in zip(requests[:4], found, strict=False):
        assert_log_probs(model, list(request.prompt), completion)
