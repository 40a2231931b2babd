"""Figures of large models and of the head."""

import importlib.util
import statistics
from typing import Any

import gpu
import gpu_step
import head_of
import torch
from run import HEADS

from distill_tune import training
from first_hour.outcome import NotMeasured, Settings

ROUNDS = 3


def step(settings: Settings, case: str, tool: str = "ours") -> dict[str, Any]:
    """A case of benchmarks/gpu.py in this process, of our step or of ``tool``'s.

    Raises:
        NotMeasured: it is larger than the card, as `plan` expected.
    """
    try:
        return gpu_step.measure(tool, case, settings.device, settings.small)
    except torch.OutOfMemoryError:
        device = training.find_device(settings.device)
        of_case = gpu_step.case_of(case, settings.small)
        expected = gpu_step.expected_bytes(tool, of_case, device, settings.small, torch.bfloat16)
        total = torch.cuda.get_device_properties(device).total_memory
        if expected < total:
            raise
        raise NotMeasured(f"plan expects {expected / 2**30:.1f} GiB, the card has {total / 2**30:.1f}") from None


def sharded_step(settings: Settings, case: str) -> dict[str, Any]:
    """The same by as many processes as there are GPUs; by two on a CPU."""
    count = torch.cuda.device_count() if settings.device == "cuda" else 2
    if count < 2:
        raise NotMeasured("needs several GPUs")
    return gpu.in_fresh_process("ours", case, settings.device, settings.small, count)


def head_beside_trl(settings: Settings) -> dict[str, Any]:
    """The same chunked losses by ours and by TRL's head, in turn; TRL's is the divergence alone."""
    if importlib.util.find_spec("trl") is None:
        raise NotMeasured("trl is not installed")
    rows, sizes = (64, ["2000", "64", "96"]) if settings.small else HEADS[settings.device]
    example = head_of.Example(rows, *map(int, sizes), settings.device)
    seconds: dict[str, list[float]] = {"ours": [], "trl": []}
    losses, added = {}, {}
    for _ in range(ROUNDS):
        for name, head in (("ours", head_of.ours), ("trl", head_of.trl)):
            found = head_of.measure(head, example, 2, settings.device)
            seconds[name].append(statistics.median(found["seconds"]))
            losses[name], added[name] = found["losses"][1], found["added_bytes"]
    ratio = statistics.median(trl / ours for ours, trl in zip(seconds["ours"], seconds["trl"], strict=True))
    return {
        "times_as_fast": ratio,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "kd_loss": losses,
        "added_bytes": added,
        "tokens": rows,
        "sizes": sizes,
    }
