"""Whole steps on the device: against the CPU's, compiled against not, and where memory runs out."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gpu_step
import torch
from omegaconf import OmegaConf

from distill_tune import models, teachers, training
from distill_tune.data import StepPlan, TokenisedRows
from distill_tune.data.batch import Batch, joined
from distill_tune.losses import LossSums
from distill_tune.training.out_of_memory import halved_if_too_large
from first_hour.numbers import off
from first_hour.outcome import Deviation, Settings

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Each layer rounds its own way in bf16, and a gradient comes through all of them.
BOUNDS = {"bf16": 3e-2, "fp32": 1e-5}
CASE: dict[str, Any] = {"lengths": [60, 1, 33, 90], "supervised": 0.7}


def against_cpu(settings: Settings, dtype: str) -> Deviation:
    """Loss and gradients of teacher, student with LoRA and head."""
    found, wanted = (_loss_and_gradient(CASE, device, dtype) for device in (settings.device, "cpu"))
    return Deviation(off(found, wanted), BOUNDS[dtype])


def compiled(settings: Settings, dtype: str) -> Deviation:
    found, wanted = (_loss_and_gradient(CASE | more, settings.device, dtype) for more in ({"compile": True}, {}))
    return Deviation(off(found, wanted), BOUNDS[dtype])


def _loss_and_gradient(case: dict[str, Any], device: str, dtype: str) -> list[torch.Tensor]:
    student, teacher = gpu_step.on_meta("ours", case, True, DTYPES[dtype])
    torch.manual_seed(0)  # drawn on the CPU, so the same everywhere
    loss = gpu_step.ours(case, student, teacher, gpu_step.rows_of(case, 500), torch.device("cpu"))
    student.to(device)
    teacher.to(device)
    value = loss()
    value.backward()
    return [value, _gradient(student)]


def _gradient(student: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def halved(settings: Settings) -> Deviation:
    """A step for which the device has too little memory: its gradient in halves against that with enough."""
    dtype = DTYPES["bf16" if settings.device == "cuda" else "fp32"]
    student, teacher_model = gpu_step.on_meta("ours", {}, True, dtype)
    head, teacher = models.take_output_head(student), teachers.LiveTeacher(teacher_model)
    for model in (student, teacher_model):
        gpu_step.fill(model, torch.device(settings.device))
    optimizer = training.build_optimizer(OmegaConf.create(gpu_step.OPTIMIZER), student.parameters())
    lengths = [20] * 6 if settings.small else [1000] * 24
    rows = gpu_step.rows_of({"lengths": lengths, "supervised": 1.0}, 500)
    batch = joined(rows).to(torch.device(settings.device))
    tokens, ends = torch.cat([of_row for of_row, _ in rows]), torch.tensor([0, *lengths]).cumsum(0)
    plan = StepPlan([TokenisedRows(tokens, tokens, ends, packed=False, max_seq_len=None)], batch_size=len(rows))

    def accumulate(batches: list[Batch]) -> list[LossSums]:
        optimizer.zero_grad(set_to_none=True)
        sums = []
        for part in batches:
            of_part, _ = gpu_step.sums_of(student, head, teacher, part)
            of_part.loss.backward()
            sums.append(of_part.detach())
        return sums

    said: list[str] = []
    accumulate([batch])
    wanted = _gradient(student)
    with too_little_memory(lambda: accumulate([batch]), lambda: accumulate(batch.halves())):
        ran, _ = halved_if_too_large(accumulate, [batch], plan=plan, optimizer=optimizer, say=said.append)
    if len(ran) != 2 or not said:
        raise RuntimeError("memory did not run out")
    return Deviation(off([_gradient(student)], [wanted]), 1e-2 if dtype == torch.bfloat16 else 1e-5, said[0])


@contextlib.contextmanager
def too_little_memory(whole: Callable[[], Any], halves: Callable[[], Any]) -> Iterator[None]:
    """CUDA's allocator may take as much as lies between what the two need."""
    needed = []
    for run in (whole, halves):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        needed.append((torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()))
    most, least = needed[0][0], needed[1][1]
    if most <= least:
        raise RuntimeError(f"halves take {least:,} bytes of the device, the whole {most:,}: nothing lies between")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    torch.cuda.set_per_process_memory_fraction((most + least) / 2 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def fused_adamw(settings: Settings) -> Deviation:
    """What 20 steps of the optimizer that both recipes build make of some parameters, against float64."""
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(size, generator=generator) for size in ((33, 65), (129,))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in first] for _ in range(20)]
    found, wanted = [], []
    component = OmegaConf.create(gpu_step.OPTIMIZER | {"lr": 1e-2, "weight_decay": 0.1})
    for device, dtype, result in ((settings.device, torch.float32, found), ("cpu", torch.float64, wanted)):
        result += [torch.nn.Parameter(p.to(device, dtype, copy=True)) for p in first]
        optimizer = training.build_optimizer(component, result)
        if not optimizer.param_groups[0].get("fused"):
            raise RuntimeError(f"AdamW is not fused on {device}")
        for of_step in gradients:
            for parameter, gradient in zip(result, of_step, strict=True):
                parameter.grad = gradient.to(device, dtype)
            optimizer.step()
    return Deviation(off(found, wanted), 1e-5)
