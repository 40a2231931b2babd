"""Counted products against PyTorch's own counter over a real step."""

import pytest
import torch
from tiny import VOCAB_SIZE, model_arguments
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.training.flops import ModelFlops, Utilisation

from torchtune.models.llama3_2 import llama3_2, lora_llama3_2

TOKENS = torch.randint(3, VOCAB_SIZE, (1, 96), generator=torch.Generator().manual_seed(0))
LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4, "lora_alpha": 8}


@pytest.mark.parametrize("kind", ["forward", "trained", "lora"])
def test_the_count_is_that_of_the_step(kind):
    model = lora_llama3_2(**LORA, **model_arguments()) if kind == "lora" else llama3_2(**model_arguments())
    models.freeze_all_but_adapters(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(TOKENS)
        if kind != "forward":
            logits.sum().backward()
    counted = ModelFlops.of(model, trains=kind != "forward").of_step([96], 96)
    # PyTorch's plain attention computes the other half, too, which the mask then hides.
    attention = ModelFlops.of(model, trains=kind != "forward").per_attended_pair * 96 * 95 / 2
    # With LoRA the frozen embeddings ask for no gradient, which saves a bit of the first layer's.
    assert counted + attention == pytest.approx(counter.get_total_flops(), rel=0.07 if kind == "lora" else 0.02)


def test_utilisation_is_told_where_the_peak_is_known(monkeypatch):
    model = llama3_2(**model_arguments())
    assert Utilisation(model, [], torch.device("cpu"), torch.bfloat16).of_step([96], 96, 1.0) == {}
    monkeypatch.setattr("distill_tune.training.flops.peak_flops", lambda device, dtype: 1e9)
    told = Utilisation(model, [model], torch.device("cuda"), torch.bfloat16, num_devices=2).of_step([96], 90, 0.5)
    flops = sum(ModelFlops.of(model, trains).of_step([96], 90) for trains in (True, False))
    assert told == {"model_flops_utilization": pytest.approx(flops / 0.5 / 2e9)}
