"""What the figures were measured on. No name of the machine or its user."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from first_hour.outcome import Settings

_PACKAGES = ("distill-tune", "torch", "triton", "torchtune", "torchao", "transformers", "numpy", "trl", "pytest")


def about(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {
        "card": _cpu(),
        "cards": 0,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cuda of torch": torch.version.cuda,
    }
    if settings.device != "cuda":
        return found
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "card": properties.name,
        "cards": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "memory_bytes": total,
        "free_bytes": free,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.partition("\n")[0].strip() or None


def _cpu() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"CPU ({model or platform.machine()})"
