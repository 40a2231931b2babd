"""A collective that did not end: which rank waited, at which step and line, and for whom."""

import contextlib
import sys
import traceback
from types import TracebackType
from typing import Any

_KEY = "distill_tune/waiting/"


def has_waited_in_vain(error: BaseException) -> bool:
    """Whether an error means that a collective has timed out; if so, the other ranks can see that this one waited."""
    if not isinstance(error, RuntimeError) or not any(text in str(error).lower() for text in ("timed out", "timeout")):
        return False
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return False
    with contextlib.suppress(RuntimeError):  # the store's keeper may have ended
        _store().set(f"{_KEY}{distributed.get_rank()}", "1")
    return True


def whom_it_waited_for(error: BaseException) -> str:
    """The place, and the ranks that have not waited: they hang, or have died. Asked once the others have had time."""
    import torch.distributed

    try:
        others = [rank for rank in range(torch.distributed.get_world_size()) if rank != torch.distributed.get_rank()]
        absent = [str(rank) for rank in others if not _store().check([f"{_KEY}{rank}"])]
    except RuntimeError:
        absent = ["that kept the store"]
    who = f"rank {', '.join(absent)} did not come" if absent else "all ranks waited, so the network between them fails"
    return f"{_place(error.__traceback__)}: a collective did not end in time; {who}"


def _place(where: TracebackType | None) -> str:
    """``step 12, kd_distributed.py line 226``: of the recipe, whose main has a step."""
    frames = list(traceback.walk_tb(where))
    frame, line = next(((f, n) for f, n in frames if f.f_code.co_name == "main" and "step" in f.f_locals), frames[-1])
    step = frame.f_locals.get("step")
    at = f"step {step + 1}, " if isinstance(step, int) else ""
    return f"{at}{frame.f_code.co_filename} line {line}"


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()
