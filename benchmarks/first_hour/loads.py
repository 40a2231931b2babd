"""The demo's teacher as teacher_offload and teacher_quantizer load it: its hidden states on some rows."""

import importlib.util
from typing import Any

import torch
from gpu_step import rows_of
from omegaconf import OmegaConf
from torch import nn

from distill_tune import teachers
from distill_tune.config.files import demo_model_folder
from distill_tune.data.batch import joined
from first_hour.numbers import off
from first_hour.outcome import Deviation, NotMeasured, Settings

FURTHEST = 0.15  # of 128 normal weights in 16 steps: 0.1


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


@torch.no_grad()
def int4(settings: Settings, quantizer: dict[str, Any]) -> Deviation:
    """Against the CPU's products with the weights that the quantised layers really have: what they make of ones.

    Raises:
        RuntimeError: those are further from the weights that were loaded than four bits bring them.
        NotMeasured: the package that the kind needs is not installed.
    """
    needs_package = "int4_packing_format" not in quantizer
    if needs_package and importlib.util.find_spec("mslk") is None:
        raise NotMeasured("mslk is not installed")
    teacher, plain = _teacher(settings.device, quantizer), _teacher("cpu")
    found, furthest = _hidden(teacher, settings.device), 0.0
    for name, module in plain.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            ones = torch.eye(module.in_features, dtype=torch.bfloat16, device=settings.device)
            weight = teacher.model.layers.get_submodule(name)(ones).T.cpu()
            furthest = max(furthest, off([weight], [module.weight]))
            module.weight.data = weight.contiguous()
    if not furthest < FURTHEST:
        raise RuntimeError(f"a weight is off by {furthest:.2f}, in four bits it is by {FURTHEST} at most")
    return Deviation(off([found], [_hidden(plain, "cpu")]), 2e-2, f"weights by {furthest:.2f}")


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
