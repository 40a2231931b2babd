"""Products with weights laid out anew, beside float64 and beside the layers' own."""

import copy
import types

import pytest
import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.generation import Decoder, Request, Sampling, prepacked, stream_of

from torchtune.models.llama3_2 import lora_llama3_2
from torchtune.modules.peft import LoRALinear

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def large(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def in_float64(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return copy.deepcopy(layer).double()(x.double())


@needs_onednn
@pytest.mark.parametrize("rows", [1, 3, 16, 70])
@pytest.mark.parametrize(
    "layer", [large(nn.Linear(400, 300)), large(nn.Linear(400, 300, bias=False))], ids=["with bias", "without"]
)
def test_a_layer_multiplies_by_its_copy_until_the_end(layer, rows):
    x = torch.randn(rows, 1, 400)
    wanted = in_float64(layer, x)
    with prepacked.prepacked_layers(layer), torch.inference_mode():
        found = layer(x)
        weight = layer.weight.clone()
        layer.weight.zero_()  # what is multiplied by is a copy
        assert torch.equal(layer(x), found)
        layer.weight.copy_(weight)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-4)
    assert layer(x).requires_grad


@needs_onednn
def test_products_are_of_few_numbers_of_rows_for_each_of_which_onednn_keeps_code(monkeypatch):
    asked, multiply = set(), torch.ops.mkldnn._linear_pointwise.default

    def heard(x, *others):
        asked.add(len(x))
        return multiply(x, *others)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", types.SimpleNamespace(default=heard))
    layer = large(nn.Linear(400, 300))
    of_rows = [torch.randn(1, rows, 400) for rows in (1, 64, 65, 130, 700)]
    wanted = [in_float64(layer, x) for x in of_rows]
    with prepacked.prepacked_layers(layer), torch.no_grad():
        for x, of_x in zip(of_rows, wanted, strict=True):
            torch.testing.assert_close(layer(x).double(), of_x, rtol=1e-5, atol=1e-4)
    assert asked == {1, 64, 2, 60}


@pytest.mark.parametrize("size", [40, 400])
def test_adapters_are_merged(size):
    layer = large(LoRALinear(size, 300, rank=4, alpha=8, dropout=0.5, use_bias=True)).eval()
    x = torch.randn(3, size)
    wanted = in_float64(layer, x)
    with prepacked.prepacked_layers(layer), torch.no_grad():
        layer.lora_b.forward = None  # not asked
        torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-4)
        del layer.lora_b.forward
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-5, atol=1e-4)


def test_two_at_a_time_leave_a_layer_as_it_was():
    layer = large(LoRALinear(40, 30, rank=4, alpha=8)).eval()
    x = torch.randn(3, 40)
    wanted = layer(x)
    first, second = (prepacked.prepacked_layers(layer) for _ in range(2))
    first.__enter__()
    with second:
        pass
    torch.testing.assert_close(layer(x), wanted)
    first.__exit__(None, None, None)
    assert "forward" not in vars(layer)


def test_layers_without_adapters_that_are_small_or_of_another_dtype_stay():
    layers = nn.Sequential(
        nn.Linear(8, 8), nn.Linear(400, 300, dtype=torch.bfloat16), nn.Linear(400, 300, device="meta")
    )
    layers.append(LoRALinear(8, 8, rank=2, alpha=4))
    layers[-1].disabled = True
    with prepacked.prepacked_layers(layers):
        assert not any("forward" in vars(layer) for layer in layers)


@needs_onednn
@pytest.mark.parametrize("copies", [True, False])
def test_answers_are_those_of_the_weights_as_they_are_at_each_call(copies, monkeypatch):
    torch.manual_seed(0)
    lora = {"lora_attn_modules": ["q_proj"], "lora_rank": 4, "lora_alpha": 8}
    shape = {"vocab_size": 600, "num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 32}
    model = lora_llama3_2(**shape, embed_dim=256, intermediate_dim=512, **lora)
    monkeypatch.setattr(prepacked, "_MOST_BYTES", 2**32 if copies else 0)
    requests = [Request([3, 4, 5], stream_of(0, row)) for row in range(3)]
    decoder = Decoder(model, {}, Sampling(6))
    for _ in range(2):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
        for request, answer in zip(requests, decoder.generate(requests), strict=True):
            row = torch.tensor([[*request.prompt, *answer.tokens]])
            with torch.no_grad():
                wanted = model.eval()(row)[0, 2:-1].log_softmax(-1)[range(6), answer.tokens]
            torch.testing.assert_close(torch.tensor(answer.log_probs), wanted, rtol=0, atol=1e-4)
