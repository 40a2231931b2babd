"""metrics.jsonl: a line a step."""

import contextlib
import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from distill_tune.disk import retried
from distill_tune.training.distributed import is_main_process


class Metrics:
    """Appends to metrics.jsonl, and to torchtune's metric logger where a config has one; on the main process alone.

    Args:
        path: the file.
        history: a checkpoint's copy of it, with which it begins; None for a fresh start.
        logger: any of torchtune.training.metric_logging.
        log_every_n_steps: how often ``logger`` hears; the file has every step.
        log_peak_memory_stats: whether ``logger`` hears of memory; the file has it.
    """

    def __init__(
        self,
        path: Path,
        history: Path | None = None,
        logger: Any = None,
        log_every_n_steps: int = 1,
        log_peak_memory_stats: bool = True,
    ) -> None:
        self._logger: Any = None
        self._file: IO[str] | None = None
        if not is_main_process():
            return
        partial = path.with_name(f".{path.name}.partial")
        if history is None:
            partial.write_bytes(b"")
        else:
            shutil.copyfile(history, partial)
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")
        self._logger, self._every = logger, log_every_n_steps
        self._unheard = {"step"} if log_peak_memory_stats else {"step", "peak_memory_bytes"}

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        if self._logger is not None:
            self._logger.close()

    def write(self, values: Mapping[str, float]) -> None:
        """One line; ``values`` has a ``step``. What is not finite becomes null, which every reader of JSON knows."""
        if self._file is None:
            return
        line = json.dumps({name: _finite(value) for name, value in values.items()}) + "\n"
        self._file.write(line)
        try:
            retried(self._file.name, self._file.flush)
        except OSError as error:  # a full disk: the line waits in the buffer for the next one
            print(f"{self._file.name}: {error.strerror}; what it lacks follows once there is room", file=sys.stderr)
        step = int(values["step"])
        if self._logger is not None and step % self._every == 0:
            self._logger.log_dict(
                {name: value for name, value in values.items() if name not in self._unheard}, step=step
            )


def read_metrics(path: Path | None) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; none without one."""
    if path is not None and path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # cut short
                if isinstance(values := json.loads(line), dict):
                    yield values


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory in use so far: on the device where it counts, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None
