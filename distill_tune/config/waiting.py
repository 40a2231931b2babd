"""A collective that did not end: which rank waited, at which step and line, and for whom."""

import sys
import traceback
from datetime import timedelta
from types import TracebackType
from typing import Any

_KEY = "distill_tune/waiting/"


def waited_in_vain(error: BaseException) -> str | None:
    """What to say of an error that means a collective has timed out; None for any other.

    Ranks that wait tell each other through the store, so that those who do not are named: they hang, or have died.
    """
    if not isinstance(error, RuntimeError) or not any(text in str(error).lower() for text in ("timed out", "timeout")):
        return None
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return None
    return f"{_place(error.__traceback__)}: a collective did not end in time; {_missing(distributed)}"


def _place(where: TracebackType | None) -> str:
    """``step 12, kd_distributed.py line 226``: of the recipe, whose main has a step."""
    frames = list(traceback.walk_tb(where))
    frame, line = next(((f, n) for f, n in frames if f.f_code.co_name == "main" and "step" in f.f_locals), frames[-1])
    step = frame.f_locals.get("step")
    at = f"step {step + 1}, " if isinstance(step, int) else ""
    return f"{at}{frame.f_code.co_filename} line {line}"


def _missing(distributed: Any) -> str:
    from torch.distributed.distributed_c10d import _get_default_store

    store, own, count = _get_default_store(), distributed.get_rank(), distributed.get_world_size()
    others = [rank for rank in range(count) if rank != own]
    try:
        store.set(f"{_KEY}{own}", "1")
        absent = [rank for rank in others if not _is_set(store, f"{_KEY}{rank}")]
    except RuntimeError:
        return "the process that keeps the store has ended"
    if not absent:
        return "all ranks waited, so the network between them fails"
    return f"rank {', '.join(map(str, absent))} did not come"


def _is_set(store: Any, key: str) -> bool:
    try:
        store.wait([key], timedelta(seconds=5))
    except RuntimeError:
        return False
    return True
