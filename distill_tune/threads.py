"""How many threads a process computes with, and how they wait for each other. Set before PyTorch is imported."""

import os
from collections.abc import MutableMapping

from distill_tune.cpus import usable_cpus, visible_cpus

# Rounds, some 10 microseconds: longer than the gaps inside a step, far shorter than what another process holds a core.
_SPIN_COUNT = "10000"


def set_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have threads that wait sleep soon, where the user has not said how they wait.

    They would spin, and on a machine that is shared take the core from the thread that they wait for.
    """
    if not environment.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        environment["GOMP_SPINCOUNT"] = _SPIN_COUNT


def set_threads(num_processes: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Share the CPUs that may be used among the processes of this machine, where the user has not said otherwise.

    One process is left to PyTorch, but where a container's share of time is less than the CPUs that it sees.
    """
    cpus = usable_cpus()
    if num_processes > 1 or cpus < visible_cpus():
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cpus // num_processes)))
