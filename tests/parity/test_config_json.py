"""config.json is read as transformers reads it: the same random weights give the same logits, or a key is refused."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tampered_configs import BASES, tampered_configs
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.models.hf_names import hf_to_torchtune

TOKENS = torch.randint(1, 48, (1, 40), generator=torch.Generator().manual_seed(0))
# What transformers computes and we refuse, and the key that the refusal names.
REFUSED = {
    "an activation of another kind": "the activation relu",
    "is_causal false": "is_causal=False",
    "sliding_window 0": "sliding_window=0",
    "use_bidirectional_attention": "use_bidirectional_attention=True",
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    yield
    logging.set_verbosity(verbosity)


@torch.no_grad()
def theirs(folder: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor] | None:
    """Random weights and the logits that they give; None for a config.json that transformers cannot make a model of."""
    try:
        config = AutoConfig.from_pretrained(folder)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim > 1 else 0.2)
        return model.state_dict(), model(TOKENS, use_cache=False).logits
    except Exception:  # as many kinds as there are faults
        return None


@torch.no_grad()
def ours(folder: Path, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.device("meta"):
        model = models.from_hf(str(folder))
    if model.decoder_config.tied_embeddings:
        weights = {name: weight for name, weight in weights.items() if not name.endswith("lm_head.weight")}
    model.load_state_dict(hf_to_torchtune(weights, model.decoder_config), assign=True)
    return model(TOKENS)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        models.from_hf(str(folder))
    return str(refused.value)


@pytest.mark.parametrize("model_type", BASES)
def test_a_config_json_is_read_as_transformers_reads_it(model_type, tmp_path):
    found: dict[str, torch.Tensor] = {}
    for name, config in tampered_configs(model_type):
        (tmp_path / "config.json").write_text(json.dumps(config))
        wanted = theirs(tmp_path)
        if wanted is None:
            without_a_traceback(tmp_path)
        elif name in REFUSED and not read(model_type, name):
            told = refusal(tmp_path)
            assert told.startswith(f"path={tmp_path}: config.json: {REFUSED[name]}"), name
            assert "\n" not in told
        else:
            found[name] = ours(tmp_path, wanted[0])
            torch.testing.assert_close(
                found[name], wanted[1], rtol=0, atol=1e-4, msg=lambda told, name=name: f"{model_type}: {name}: {told}"
            )
    changed = [name for name, logits in found.items() if not torch.equal(logits, found["nothing"])]
    assert len(found) >= 15 and len(changed) >= 6, (len(found), changed)


def read(model_type: str, name: str) -> bool:
    """Classes that take no notice of what others would be refused for."""
    windowless = name == "sliding_window 0" and model_type == "llama"
    return windowless or (name == "use_bidirectional_attention" and not model_type.startswith("gemma"))


def without_a_traceback(folder: Path) -> None:
    try:
        models.from_hf(str(folder))  # head_dim: null, which was once allowed, we still read
    except UserError as refused:
        assert "\n" not in str(refused)


def test_there_are_many_of_them_and_no_two_alike():
    made = [json.dumps(config, sort_keys=True) for kind in BASES for _, config in tampered_configs(kind)]
    print(f"{len(made)} config.json files of {len(BASES)} classes")
    assert len(made) >= 450
    assert len(set(made)) >= len(made) - 20  # a few say what a class's base says


@pytest.mark.parametrize("change", [{"num_hidden_layers": 2**40}, {"head_dim": 2**30}, {"hidden_size": 2**30}])
def test_a_number_that_would_fill_the_memory_is_refused(change, tmp_path):
    _, config = next(tampered_configs("llama"))
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert re.search(r"must be (a whole number )?from 1 to", refusal(tmp_path))


def test_labels_of_a_classifier_are_not_made(tmp_path):
    _, config = next(tampered_configs("llama"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_labels": 2**40}))
    assert models.from_hf(str(tmp_path)).num_heads == 4
