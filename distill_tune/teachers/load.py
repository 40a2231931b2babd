"""A live teacher's weights quantised, or streamed from host memory."""

import importlib.util

import torch
from omegaconf import DictConfig
from torch import nn
from torchao.dtypes.nf4tensor import to_nf4

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.config.components import instantiate
from distill_tune.errors import UserError, one_line
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import conversion_of
from distill_tune.models.gguf import BlockLinear, GGUFCheckpoint
from distill_tune.models.loading import load_weights
from distill_tune.teachers.offload import StreamedLayers, move_all_but_layers

from torchtune.modules import TransformerDecoder

_INT4 = "torchao.quantization.Int4WeightOnlyConfig"
_TRIED = 1024  # wide enough for every kind of weights


def load_quantised_or_streamed(
    model: TransformerDecoder,
    checkpoint: Checkpoint,
    device: torch.device,
    quantizer: DictConfig | None,
    offload: bool,
) -> None:
    """
    Args:
        model: on the meta device, in the dtype that it is to run in, frozen.
        quantizer: a torchao config (``torchao.quantization.Int8WeightOnlyConfig``), or :class:`NF4`, for the linear
            layers between embeddings and output layer. Each is quantised as it reaches the device: the whole model
            never lies there.
        offload: keep the layers in host memory, and copy each to the device just before it runs.

    Raises:
        UserError: the checkpoint cannot be read; the device or the model cannot be quantised so.
    """
    if quantizer is not None:  # what it lacks is told before the weights are read
        weight = next(model.layers.parameters())
        _quantise(nn.Sequential(nn.Linear(_TRIED, _TRIED, dtype=weight.dtype).requires_grad_(False)), quantizer, device)
    load_weights(model, checkpoint, torch.device("cpu"))
    if quantizer is not None:
        _quantise(model.layers, quantizer, device)
        model.to(device)
    if offload:
        move_all_but_layers(model, device)
        StreamedLayers(model.layers, device)


def load_gguf(model: TransformerDecoder, checkpoint: GGUFCheckpoint, device: torch.device) -> None:
    """Load a GGUF file's weights; those of the layers stay in its blocks where the format is one that runs well so.

    Args:
        model: on the meta device, in the dtype that it is to run in, frozen.

    Raises:
        UserError: the file cannot be read.
    """
    load_weights(model, checkpoint, torch.device("cpu"))  # dequantised, the layers would not fit the device
    conversion = conversion_of(model, None, checkpoint.config)
    for hf_name, kind, raw in checkpoint.blocks():
        (name,) = conversion.to_torchtune({hf_name: raw})
        parent, _, last = name.removesuffix(".weight").rpartition(".")
        bias = model.get_submodule(parent).get_submodule(last).bias
        setattr(model.get_submodule(parent), last, BlockLinear(raw, kind, bias))
    model.to(device)


class NF4:
    """Four-bit NormalFloat weights (QLoRA, arXiv 2305.14314, §3) as a ``teacher_quantizer``; runs on any device.

    Matrices whose number of weights is no multiple of 16,384 stay as they are.
    """

    multiple = 64 * 256  # weights of a block, times blocks that share a scale of scales


def require_quantizer(quantizer: DictConfig) -> None:
    """
    Raises:
        UserError: one of torchao's that packs weights by a package which is not here.
    """
    packing = quantizer.get("int4_packing_format", "plain")
    is_here = importlib.util.find_spec("mslk") is not None
    if quantizer["_component_"] == _INT4 and packing in ("plain", "preshuffled") and not is_here:
        told = f"teacher_quantizer: {_INT4} needs the package mslk; pip install mslk"
        raise UserError(f"{told}, or without it teacher_quantizer.int4_packing_format=tile_packed_to_4d")


def _quantise(layers: nn.Module, quantizer: DictConfig, device: torch.device) -> None:
    from torchao.quantization import quantize_

    try:
        config = instantiate(quantizer)
        if isinstance(config, NF4):
            _to_nf4(layers, device)
        else:
            quantize_(layers, config, device=device)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error)
        if "mslk" in reason and device.type == "cuda":
            reason += "; without that package: teacher_quantizer.int4_packing_format=tile_packed_to_4d"
        raise UserError(f"teacher_quantizer: {quantizer['_component_']} on {device}: {reason}") from error


def _to_nf4(layers: nn.Module, device: torch.device) -> None:
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    if all(module.weight.numel() % NF4.multiple for module in linear):
        raise ValueError(f"no layer has a multiple of {NF4.multiple} weights")
    for module in linear:
        if module.weight.numel() % NF4.multiple == 0:
            module.weight = nn.Parameter(to_nf4(module.weight.data.to(device)), requires_grad=False)
