"""metrics.jsonl: a line a step."""

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from distill_tune.training.distributed import is_main_process


class Metrics:
    """Appends to metrics.jsonl, and to torchtune's metric logger where a config has one; on the main process alone.

    Args:
        path: the file. Lines of steps after ``step`` are dropped: a resumed run takes those steps again.
        step: steps taken so far.
        logger: any of torchtune.training.metric_logging.
        log_every_n_steps: how often ``logger`` hears; the file has every step.
        log_peak_memory_stats: whether ``logger`` hears of memory; the file has it.
    """

    def __init__(
        self,
        path: Path,
        step: int = 0,
        logger: Any = None,
        log_every_n_steps: int = 1,
        log_peak_memory_stats: bool = True,
    ) -> None:
        self._logger: Any = None
        self._file: IO[str] | None = None
        if not is_main_process():
            return
        kept = []
        if path.is_file() and step:
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._logger, self._every = logger, log_every_n_steps
        self._unheard = {"step"} if log_peak_memory_stats else {"step", "peak_memory_bytes"}

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if self._logger is not None:
            self._logger.close()

    def write(self, values: Mapping[str, float]) -> None:
        """One line; ``values`` has a ``step``."""
        if self._file is None:
            return
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        step = int(values["step"])
        if self._logger is not None and step % self._every == 0:
            self._logger.log_dict(
                {name: value for name, value in values.items() if name not in self._unheard}, step=step
            )


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: on the device where it counts, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):
        return sys.maxsize  # a line that a crash cut short
