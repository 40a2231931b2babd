"""A live teacher from its checkpoint: as it is, quantised, or streamed from host memory."""

import torch
from omegaconf import DictConfig
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.config.components import instantiate
from distill_tune.errors import UserError
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.loading import load_weights
from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.offload import StreamedLayers, move_all_but_layers

from torchtune.modules import TransformerDecoder


def load_teacher(
    model: TransformerDecoder,
    checkpoint: Checkpoint,
    device: torch.device,
    *,
    quantizer: DictConfig | None = None,
    offload: bool = False,
) -> LiveTeacher:
    """Load the teacher's weights, and make it ready to be asked.

    Args:
        model: on the meta device, in the dtype that it is to run in.
        quantizer: a torchao config (``torchao.quantization.Int8WeightOnlyConfig``) for the linear layers between
            embeddings and output layer. Each is quantised as it reaches the device: the whole model never lies there.
        offload: keep the layers in host memory, and copy each to the device just before it runs.

    Raises:
        UserError: the checkpoint cannot be read; the device or the model cannot be quantised so.
    """
    if quantizer is None and not offload:
        load_weights(model, checkpoint, device)
        return LiveTeacher(model)
    load_weights(model, checkpoint, torch.device("cpu"))
    teacher = LiveTeacher(model)
    if quantizer is not None:
        _quantise(model.layers, quantizer, device)
        model.to(device)
    if offload:
        move_all_but_layers(model, device)
        StreamedLayers(model.layers, device)
    return teacher


def _quantise(layers: nn.Module, quantizer: DictConfig, device: torch.device) -> None:
    from torchao.quantization import quantize_

    try:
        quantize_(layers, instantiate(quantizer), device=device)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"teacher_quantizer: {quantizer['_component_']} on {device}: {reason}") from error
