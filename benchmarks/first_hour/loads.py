"""The demo's teacher as teacher_offload and teacher_quantizer load it: its hidden states on some rows."""

from typing import Any

import torch
from first_hour.numbers import off
from first_hour.outcome import Deviation, Settings
from gpu_step import rows_of
from omegaconf import OmegaConf
from torch import nn

from distill_tune import teachers
from distill_tune.config.files import demo_model_folder
from distill_tune.data.batch import joined

GROUP = 128  # weights that share a scale, in torchao's int4


def offloaded(settings: Settings) -> Deviation:
    """The same bits as of a teacher that lies on the device, from one forward pass to the next."""
    wanted = _hidden(_teacher(settings.device), settings.device)
    streamed = _teacher(settings.device, offload=True)
    found = [_hidden(streamed, settings.device) for _ in range(3)]
    return Deviation(0.0 if all(torch.equal(each, wanted) for each in found) else off(found, [wanted] * 3), 0.0)


def quantised(settings: Settings, quantizer: dict[str, Any]) -> Deviation:
    """Against the same kind on the CPU."""
    found, wanted = (_hidden(_teacher(device, quantizer), device) for device in (settings.device, "cpu"))
    return Deviation(off([found], [wanted]), 2e-2)


def int4(settings: Settings, quantizer: dict[str, Any]) -> Deviation:
    """Against the CPU's products with weights that are rounded to 16 steps between least and most of a group."""
    rounded = _teacher("cpu")
    for module in rounded.model.layers.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = in_sixteen_steps(module.weight.data)
    wanted = _hidden(rounded, "cpu")
    return Deviation(off([_hidden(_teacher(settings.device, quantizer), settings.device)], [wanted]), 5e-2)


def in_sixteen_steps(weight: torch.Tensor) -> torch.Tensor:
    groups = weight.float().view(len(weight), -1, GROUP)
    least = groups.amin(-1, keepdim=True)
    step = (groups.amax(-1, keepdim=True) - least) / 15
    return (((groups - least) / step).round() * step + least).view_as(weight).to(weight.dtype)


def _teacher(device: str, quantizer: dict[str, Any] | None = None, offload: bool = False) -> teachers.LiveTeacher:
    component = OmegaConf.create(
        {"_component_": "distill_tune.models.from_hf", "path": str(demo_model_folder("teacher"))}
    )
    kind = None if quantizer is None else OmegaConf.create(quantizer)
    teacher = teachers.build_teacher(component, dtype=torch.bfloat16, quantizer=kind, offload=offload)
    teacher.load(None, torch.device(device))
    return teacher


def _hidden(teacher: teachers.LiveTeacher, device: str) -> torch.Tensor:
    rows = rows_of({"lengths": [40, 1, 90], "supervised": 1.0}, 4_000)
    return teacher(joined(rows).to(torch.device(device))).hidden.clone()
