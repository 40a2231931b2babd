"""Rounded weights and activations beside what gguf and torchao write and read back, bit for bit."""

import gguf
import numpy
import pytest
import torch
from torch import nn
from torchao.quantization import Int4WeightOnlyConfig, Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_
from torchao.quantization.qat import QATConfig

from distill_tune import qat
from distill_tune.errors import UserError

GGML = {qat.Q4_0(): gguf.GGMLQuantizationType.Q4_0, qat.Q8_0(): gguf.GGMLQuantizationType.Q8_0}


def blocks_of_every_kind() -> torch.Tensor:
    """``[n, 64]``: usual weights; blocks of zeros, ties of both signs, halves between steps, and of tiny numbers."""
    generator = torch.Generator().manual_seed(0)
    usual = torch.randn(400, 64, generator=generator) * torch.logspace(-4, 2, 400)[:, None]
    special = torch.zeros(8, 64)
    special[1, 3], special[1, 7] = 0.75, -0.75  # the first decides
    special[2, 3], special[2, 7] = -0.75, 0.75
    special[3] = torch.arange(64) % 32 - 16  # steps and halves of them
    special[4] = (torch.arange(64) % 32 - 16) / 127 * 4
    special[5] = torch.randn(64, generator=generator) * 1e-7  # whose scale float16 hardly has
    special[6] = torch.randn(64, generator=generator) * 1e-12  # nor at all
    special[7] = -3.5
    return torch.cat([usual, special])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", GGML, ids=lambda scheme: type(scheme).__name__)
def test_ggml_weights_are_those_that_gguf_reads_back(scheme, dtype):
    weight = blocks_of_every_kind().to(dtype)
    with numpy.errstate(all="ignore"):
        stored = gguf.quants.quantize(weight.float().numpy(), GGML[scheme])
        wanted = torch.from_numpy(gguf.quants.dequantize(stored, GGML[scheme])).to(dtype)
    found = scheme.weights(weight)
    assert found.dtype == dtype
    assert torch.equal(found, wanted)


def torchao_configs(groupsize: int) -> list:
    int8_int4 = Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(groupsize))
    return [
        (qat.Int8DynActInt4Weight(groupsize), int8_int4),
        (qat.Int4WeightOnly(groupsize), Int4WeightOnlyConfig(groupsize)),
    ]


@pytest.mark.torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scheme", "config"), torchao_configs(32))
def test_a_layer_computes_as_torchao_prepares_it(scheme, config, dtype):
    weight = blocks_of_every_kind()[:400].to(dtype)
    layer = nn.Linear(64, 400, bias=False, dtype=dtype)
    layer.weight.data = weight.clone()
    x = torch.randn(5, 64, dtype=dtype)
    prepared = nn.Sequential(layer)
    quantize_(prepared, QATConfig(config, step="prepare"))
    with torch.no_grad():
        wanted = prepared(x)
    found = nn.functional.linear(scheme.activations(x), scheme.weights(weight))
    assert torch.equal(found, wanted)


@pytest.mark.torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groupsize", [2, 32, 64])
def test_a_layer_computes_as_torchao_converts_it(groupsize, dtype):
    scheme, config = (
        torchao_configs(32)[0]
        if groupsize == 32
        else (
            qat.Int8DynActInt4Weight(groupsize),
            Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(groupsize)),
        )
    )
    weight = blocks_of_every_kind().to(dtype)
    layer = nn.Linear(64, len(weight), bias=False, dtype=dtype)
    layer.weight.data = weight.clone()
    converted = nn.Sequential(layer)
    quantize_(converted, config)
    x = torch.cat([torch.randn(5, 64), torch.zeros(1, 64), torch.rand(2, 64) + 3, -torch.rand(2, 64)]).to(dtype)
    assert torch.equal(scheme.weights(weight), converted[0].weight.dequantize())
    assert torch.equal(nn.functional.linear(scheme.activations(x), scheme.weights(weight)), converted(x))


def test_groups_that_a_format_has_not_are_refused():
    with pytest.raises(UserError, match=r"quantizer\.groupsize=48: must be one of 32, 64, 128, 256"):
        qat.Int4WeightOnly(48)
    with pytest.raises(UserError, match=r"quantizer\.groupsize=1: must be at least 2"):
        qat.Int8DynActInt4Weight(1)
