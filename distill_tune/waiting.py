"""Several processes of which one fails: which tells it, and of a collective that did not end, who waited for whom."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from types import FrameType
from typing import Any

from distill_tune.launch import num_processes, process_environment

_KEY = "distill_tune/waiting/"
_LOST = ("Connection reset by peer", "Connection closed by peer", "Broken pipe")  # as gloo tells it


def has_waited_in_vain(error: BaseException) -> bool:
    """Whether an error means that a collective has timed out; if so, the other ranks can see that this one waited."""
    if not isinstance(error, RuntimeError) or not any(text in str(error).lower() for text in ("timed out", "timeout")):
        return False
    if (rank := _rank()) is not None:
        with contextlib.suppress(RuntimeError):  # the store's keeper may have ended
            _store().set(f"{_KEY}{rank}", "1")
    return rank is not None


def whom_it_waited_for(error: BaseException) -> str:
    """The place, and the ranks that have not waited: they hang, or have died. Asked once the others have had time."""
    import torch.distributed

    try:
        others = [rank for rank in range(torch.distributed.get_world_size()) if rank != torch.distributed.get_rank()]
        absent = [str(rank) for rank in others if not _store().check([f"{_KEY}{rank}"])]
    except RuntimeError:
        absent = ["that kept the store"]
    who = f"rank {', '.join(absent)} did not come" if absent else "all ranks waited, so the network between them fails"
    return f"{_place(traceback.walk_tb(error.__traceback__))}: a collective did not end in time; {who}"


def where_it_lost_a_rank(error: BaseException) -> str | None:
    """The place, where an error means that another rank has ended; None for any other error."""
    if not isinstance(error, RuntimeError) or not any(text in str(error) for text in _LOST):
        return None
    place = _place(traceback.walk_tb(error.__traceback__))
    return f"{place}: the connection to another rank is lost; that rank has failed, and its own output says why"


def who_tells() -> str | None:
    """What goes before a fault's message: nothing in a lone process, ``rank N:`` in the first of several that fails.

    None where another process tells it.
    """
    if num_processes() == 1:
        return ""
    if (rank := _rank()) is None:  # found by all alike, on each machine
        return "" if process_environment(os.environ)["LOCAL_RANK"] == "0" else None
    try:
        told_by = _store().compare_set("distill_tune/fault", "", str(rank)).decode()
    except RuntimeError:  # the process that kept the store has ended: it was the first
        return None
    return f"rank {rank}: " if told_by == str(rank) else None


def tell_when_a_step_lasts(rank: int, seconds: float) -> None:
    """Say on stderr where this rank is when a step has lasted for most of ``seconds``, the time a collective has.

    So the rank that hangs tells its own line; and NCCL's watchdog ends a process from outside of Python, when nothing
    can be said of the step any more.
    """
    threading.Thread(target=_watch, args=(rank, seconds), daemon=True).start()


def _watch(rank: int, seconds: float) -> None:
    at, since, is_told = "", time.monotonic(), False
    while True:
        time.sleep(seconds / 20)
        frames = [*traceback.walk_stack(sys._current_frames()[threading.main_thread().ident or 0])][::-1]
        if (step := _step(frames)[1]) != at:
            at, since, is_told = step, time.monotonic(), False
        lasted = time.monotonic() - since
        if step and lasted > 0.8 * seconds and not is_told:
            is_told = True
            print(
                f"distill-tune: rank {rank}: {_place(frames)}: no step has ended for {lasted:.0f} seconds; "
                f"a collective that takes more than {seconds:g} ends the run",
                file=sys.stderr,
                flush=True,
            )


def _place(frames: Iterable[tuple[FrameType, int]]) -> str:
    """``step 12, kd_distributed.py line 226``: the innermost line of the recipe."""
    frames = list(frames)
    file, step = _step(frames)
    line = next(line for frame, line in reversed(frames) if frame.f_code.co_filename == file)
    return f"{step}{file} line {line}"


def _step(frames: list[tuple[FrameType, int]]) -> tuple[str, str]:
    """The file of the recipe, whose function is main, and the step that it has come to."""
    main = next((frame for frame, _ in reversed(frames) if frame.f_code.co_name == "main"), frames[-1][0])
    step = main.f_locals.get("step")
    return main.f_code.co_filename, f"step {step + 1}, " if isinstance(step, int) else ""


def _rank() -> int | None:
    """None where the processes have not met."""
    distributed = sys.modules.get("torch.distributed")
    return distributed.get_rank() if distributed is not None and distributed.is_initialized() else None


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
