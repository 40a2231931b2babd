"""What torchrun or Slurm tell a process about the others; nothing heavy is imported."""

import os
import re
import signal
import threading
import time
from collections.abc import Mapping, MutableMapping

SWEEP = "DISTILL_TUNE_SWEEP"  # variable with the number of the process that a trial is of
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
_FIRST_PORT, _PORTS = 20_000, 20_000


def num_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes were started together; 1 where nobody started several."""
    return int(process_environment(environment)["WORLD_SIZE"])


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or srun started this process."""
    return "RANK" in environment or _is_slurm_task(environment)


def is_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or Slurm started this run again after it failed or was requeued."""
    return any(int(environment.get(name) or 0) > 0 for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def is_heeded(number: int) -> bool:
    """Whether a signal does anything here: nohup has its program ignore SIGHUP."""
    return signal.getsignal(number) != signal.SIG_IGN


def stop_with_torchrun(environment: Mapping[str, str] = os.environ) -> None:
    """As :func:`stop_with`, where torchrun started this process."""
    if "TORCHELASTIC_RUN_ID" in environment:
        stop_with(os.getppid())


def stop_with_sweep(environment: MutableMapping[str, str] = os.environ) -> None:
    """As :func:`stop_with`, where a sweep started this process; what it starts in its turn stops with it."""
    if parent := environment.pop(SWEEP, None):
        stop_with(int(parent))


def stop_with(parent: int) -> None:
    """Have this process told to stop, as by SIGTERM, when its parent is killed: it would stay on its GPU.

    The kernel's PR_SET_PDEATHSIG would send a signal for each thread of torchrun, and the second ends a run at once.
    """
    threading.Thread(target=_stop_after, args=(parent,), daemon=True).start()


def _stop_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch.distributed reads: as torchrun has set them, made from Slurm's, or for one process."""
    if "RANK" in environment:
        return {name: environment.get(name, alone) for name, alone in _ALONE.items()}
    if _is_slurm_task(environment):
        # Jobs that share a machine must not share a port; all processes of a job must find the same.
        job = int(environment.get("SLURM_JOB_ID", 0)) * 7 + int(environment.get("SLURM_STEP_ID", 0))
        return {
            "RANK": environment["SLURM_PROCID"],
            "WORLD_SIZE": environment["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + job % _PORTS),
        }
    return dict(_ALONE)


def _is_slurm_task(environment: Mapping[str, str]) -> bool:
    # SLURM_NTASKS is also there in a batch script, which is no task; these only in what srun starts.
    return int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment


def _first_host(nodes: str) -> str:
    """``gpu[03-05,9],login`` -> ``gpu03``."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,]*))?", nodes)
    assert found is not None
    return f"{found[1]}{found[2] or ''}{found[3] or ''}"
