"""Peak memory of a piece of work, on whatever device it runs."""

import ctypes
import gc
from pathlib import Path
from types import TracebackType

import torch

from distill_tune.training.metrics import peak_memory_bytes


class PeakMemory:
    """How far memory rose above where it stood on entry; ``bytes`` is set on exit.

    CUDA's allocator counts exactly. On Linux the process's own high-water mark is reset and read; elsewhere a rise
    is seen only where it exceeds all that the process used before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        elif _STATUS.is_file():
            gc.collect()
            _give_back_freed_memory()  # else the work reuses what an earlier piece freed, and seems to take nothing
            _CLEAR.write_text("5")  # resets VmHWM, see proc_pid_clear_refs(5)
            self._before = _status("VmRSS")
        else:
            self._before = peak_memory_bytes(self._device)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        counts_itself = self._device.type == "cuda" or not _STATUS.is_file()
        peak = peak_memory_bytes(self._device) if counts_itself else _status("VmHWM")
        self.bytes = max(0, peak - self._before)


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _give_back_freed_memory() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)


def _status(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
