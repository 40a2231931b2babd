"""metrics.jsonl: a line a step."""

import collections
import contextlib
import json
import math
import os
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from distill_tune.counts import counted
from distill_tune.disk import replaced_whole, retried
from distill_tune.secrets import hide_secrets
from distill_tune.training.distributed import is_main_process


class Metrics:
    """Appends to metrics.jsonl, and to torchtune's metric logger where a config has one; on the main process alone.

    Lines that a disk refuses wait until it takes them. A logger that fails is told, and hears no more.

    Args:
        path: the file.
        history: a checkpoint's copy of it, with which it begins; None for a fresh start.
        logger: any of torchtune.training.metric_logging.
        config: what ``logger`` hears first.
        log_every_n_steps: how often ``logger`` hears; the file has every step.
        log_peak_memory_stats: whether ``logger`` hears of memory; the file has it.
    """

    def __init__(
        self,
        path: Path,
        history: Path | None = None,
        logger: Any = None,
        config: Any = None,
        log_every_n_steps: int = 1,
        log_peak_memory_stats: bool = True,
    ) -> None:
        self._logger: Any = None
        self._path, self._descriptor = path, -1
        self._unwritten: collections.deque[bytes] = collections.deque()
        self._waits = False
        if not is_main_process():
            return
        with replaced_whole(path) as partial:
            if history is None:
                partial.touch()
            else:
                shutil.copyfile(history, partial)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._logger, self._every = logger, log_every_n_steps
        if logger is not None and config is not None:
            self._or_without_logger(lambda: logger.log_config(config))
        self._unheard = {"step"} if log_peak_memory_stats else {"step", "peak_memory_bytes"}

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._descriptor < 0:
            return
        self._append()
        if self._unwritten:
            print(
                f"{self._path}: the last {counted(len(self._unwritten), 'line')} could not be written", file=sys.stderr
            )
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        if self._logger is not None:
            self._or_without_logger(self._logger.close)

    def write(self, values: Mapping[str, float]) -> None:
        """One line; ``values`` has a ``step``. What is not finite becomes null, which every reader of JSON knows.

        A logger hears what is not finite as it is, and nothing of what is None.
        """
        if self._descriptor < 0:
            return
        line = json.dumps({name: _finite(value) for name, value in values.items()}) + "\n"
        self._unwritten.append(line.encode())
        self._append()
        step = int(values["step"])
        if self._logger is not None and step % self._every == 0:
            heard = {name: value for name, value in values.items() if name not in self._unheard and value is not None}
            self._or_without_logger(lambda: self._logger.log_dict(heard, step=step))

    def _append(self) -> None:
        """What is unwritten, as far as the disk takes it."""
        try:
            # Once it is told, no step waits again for a file system that is away.
            self._append_once() if self._waits else retried(str(self._path), self._append_once)
            self._waits = False
        except OSError as error:
            if not self._waits:
                print(f"{self._path}: {error.strerror}; what it lacks follows once there is room", file=sys.stderr)
            self._waits = True

    def _append_once(self) -> None:
        while self._unwritten:
            size, line = os.fstat(self._descriptor).st_size, self._unwritten[0]
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, size)  # no half of a line
                raise
            self._unwritten.popleft()

    def _or_without_logger(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is, training goes on
            told = hide_secrets(f"{type(error).__name__}: {error}".splitlines()[0])
            print(f"metric_logger: {told}; it is left out from here on, {self._path} has every step", file=sys.stderr)
            self._logger = None


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
