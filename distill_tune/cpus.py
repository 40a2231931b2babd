"""How many CPUs this process may use, which may be fewer than the machine has."""

import math
import os
from pathlib import Path

# A container's share, as quota and period; the second pair is of the older kernels' files.
_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def usable_cpus() -> int:
    """Those that Slurm, taskset or a container's cpuset leave to it; a container's share of time, if that is less."""
    return min([visible_cpus(), *map(_share, _QUOTAS)])


def visible_cpus() -> int:
    """Those that Slurm, taskset or a container's cpuset leave to it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _share(files: tuple[Path, ...]) -> int:
    """CPUs' time that a container may take, rounded up; more than any machine has where it may take all."""
    try:
        quota, period = (int(number) for number in " ".join(file.read_text() for file in files).split())
    except (OSError, ValueError):  # no such file, or "max"
        return 2**31
    return math.ceil(quota / period) if quota > 0 else 2**31
