"""Rounded weights and activations beside what gguf and torchao write and read back, bit for bit."""

import gguf
import numpy
import pytest
import torch
from torch import nn
from torchao.quantization import Int4WeightOnlyConfig, Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_
from torchao.quantization.qat import QATConfig
from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine

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


# torchao 0.16 has no scale below the dtype's eps, 2^-7 in bf16, and leaves nothing of small weights.
bounds_scales = choose_qparams_affine(torch.full((1, 2), 1e-20), MappingType.SYMMETRIC, (1, 2), torch.int8)[0] > 1e-9


def usual_weights(rows: int = 400) -> torch.Tensor:
    """``[rows, 256]``, of magnitudes for which every torchao has a scale."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 256, generator=generator) * torch.logspace(0, 2, rows)[:, None]


def usual_activations() -> torch.Tensor:
    """``[n, 256]``: usual ones, zeros, and of one sign alone."""
    return torch.cat([torch.randn(5, 256), torch.zeros(1, 256), torch.rand(2, 256) + 3, -4 * torch.rand(2, 256)])


def int8_int4(groupsize: int) -> Int8DynamicActivationIntxWeightConfig:
    return Int8DynamicActivationIntxWeightConfig(torch.int4, PerGroup(groupsize))


def layer_of(weight: torch.Tensor) -> nn.Sequential:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight.data = weight.clone()
    return nn.Sequential(layer)


@pytest.mark.torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("scheme", "config"),
    [
        (qat.Int8DynActInt4Weight(32), int8_int4(32)),
        (qat.Int4WeightOnly(128), Int4WeightOnlyConfig(128)),  # of others 0.16 prepares this one
    ],
)
def test_a_layer_computes_as_torchao_prepares_it(scheme, config, dtype):
    weight, x = usual_weights().to(dtype), usual_activations().to(dtype)
    prepared = layer_of(weight)
    quantize_(prepared, QATConfig(config, step="prepare"))
    with torch.no_grad():
        wanted = prepared(x)
    assert torch.equal(nn.functional.linear(scheme.activations(x), scheme.weights(weight)), wanted)


@pytest.mark.torchao
@pytest.mark.parametrize(
    ("groupsize", "dtype"),
    [(2, torch.float32), (32, torch.float32), (32, torch.bfloat16), (256, torch.bfloat16)],
)
def test_a_layer_computes_as_torchao_converts_it(groupsize, dtype):
    scheme, weight, x = qat.Int8DynActInt4Weight(groupsize), usual_weights().to(dtype), usual_activations().to(dtype)
    converted = layer_of(weight)
    quantize_(converted, int8_int4(groupsize))
    assert torch.equal(scheme.weights(weight), converted[0].weight.dequantize())
    assert torch.equal(nn.functional.linear(scheme.activations(x), scheme.weights(weight)), converted(x))


@pytest.mark.torchao
@pytest.mark.skipif(bool(bounds_scales), reason="this torchao rounds small weights to zero")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_of_every_kind_are_those_that_torchao_gives_back(dtype):
    weight = blocks_of_every_kind().to(dtype)
    converted = layer_of(weight)
    quantize_(converted, int8_int4(32))
    assert torch.equal(qat.Int8DynActInt4Weight(32).weights(weight), converted[0].weight.dequantize())


def test_groups_that_a_format_has_not_are_refused():
    with pytest.raises(UserError, match=r"quantizer\.groupsize=48: must be one of 32, 64, 128, 256"):
        qat.Int4WeightOnly(48)
    with pytest.raises(UserError, match=r"quantizer\.groupsize=1: must be at least 2"):
        qat.Int8DynActInt4Weight(1)
