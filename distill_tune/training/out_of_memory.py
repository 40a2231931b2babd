"""A step that does not fit in memory: once more in halves, else an error that says what costs least."""

import gc
from collections.abc import Callable
from typing import Any

import torch

from distill_tune.data.batch import Batch
from distill_tune.data.plan import StepPlan
from distill_tune.losses import LossSums
from distill_tune.training.distributed import num_ranks

Accumulate = Callable[..., list[LossSums]]


def halved_if_too_large(
    accumulate: Accumulate,
    batches: list[Batch],
    *arguments: Any,
    plan: StepPlan | None = None,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
) -> tuple[list[Batch], list[LossSums]]:
    """Run a step's micro-batches; where the device's memory runs out, once more from the start, each in two.

    The gradient is the same: losses are sums over tokens, whatever micro-batch a row is in. One of several processes
    cannot begin anew by itself, so there the error goes on.

    Args:
        accumulate: forward and backward of some micro-batches, with ``arguments``; the sums of each.
        plan: makes the micro-batches, from now on no larger ones; None cuts this step alone.

    Returns:
        The micro-batches that were run, and their sums.

    Raises:
        torch.OutOfMemoryError: the halves do not fit either, or there is nothing to halve.
    """
    try:
        return batches, accumulate(batches, *arguments)
    except torch.OutOfMemoryError:
        halves = [half for batch in batches for half in batch.halves()]
        if num_ranks() > 1 or len(halves) == len(batches):
            raise
    # Outside of the except clause, whose traceback holds on to the tensors of the forward pass.
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    most, largest = (max(sum(batch.lengths) for batch in of) for of in (halves, batches))
    from_now = "" if plan is None else ", and from now on,"
    say(f"out of memory with micro-batches of {largest} tokens: once more{from_now} with {most} at most")
    if plan is not None:
        plan.take_at_most(halves)
    return halves, accumulate(halves, *arguments)
