"""Steps that must not be applied, and losses that stand out."""

import collections
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_tune.counts import counted
from distill_tune.data.batch import Batch
from distill_tune.data.plan import StepPlan
from distill_tune.errors import UserError
from distill_tune.losses import LossSums
from distill_tune.training.distributed import on_all_ranks

_WINDOW, _FEWEST = 100, 20  # steps
_DEVIATIONS = 6.0
_SHOWN_ROWS = 8


class LossWatch:
    """Follows a run's losses, those of its metrics before a resume included.

    Args:
        history: lines of metrics.jsonl.
        max_bad_steps: so many in a row end the run.

    Attributes:
        spike: a remark, where the last step's loss lies far above those before it.
    """

    def __init__(self, history: Iterable[Mapping[str, Any]] = (), max_bad_steps: int = 10) -> None:
        self._max_bad_steps = max_bad_steps
        self._losses: collections.deque[float] = collections.deque(maxlen=_WINDOW)
        self._bad_in_a_row = 0
        self.spike: str | None = None
        for line in history:
            self.is_good(line.get("loss"), line.get("grad_norm"))

    def is_good(self, loss: float | None, grad_norm: float | None) -> bool:
        """Whether a step is to be applied: its loss and its gradient are finite. The same on every rank."""
        self.spike = None
        if loss is None or grad_norm is None or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            self._bad_in_a_row += 1
            return False
        self._bad_in_a_row, self.spike = 0, self._spike(loss)
        self._losses.append(loss)
        return True

    def _spike(self, loss: float) -> str | None:
        if len(self._losses) < _FEWEST:
            return None
        mean, deviation = statistics.fmean(self._losses), statistics.stdev(self._losses)
        if loss <= mean + _DEVIATIONS * max(deviation, 0.01 * abs(mean)):
            return None
        return f"loss {loss:.3f} is a spike: the last {len(self._losses)} steps had {mean:.3f} +- {deviation:.3f}"

    @property
    def is_lost(self) -> bool:
        """Whether too many steps in a row could not be applied."""
        return self._bad_in_a_row >= self._max_bad_steps

    def lost(self, step: int) -> UserError:
        return UserError(
            f"stopped after step {step}: {counted(self._bad_in_a_row, 'step')} in a row (max_bad_steps) had a loss or "
            "gradient that is not finite; the weights are those before them, in the newest checkpoint; lower "
            "optimizer.lr, set clip_grad_norm, or mend the rows that were named"
        )


def name_rows(plan: StepPlan, batches: Sequence[Batch], sums: Sequence[LossSums], loss: float, grad_norm: float) -> str:
    """What was wrong with a step, and its rows: of micro-batches without a finite loss where there are such, else all.

    Every rank calls it with its own micro-batches and their sums.
    """
    bad = [batch for batch, part in zip(batches, sums, strict=True) if not math.isfinite(part.loss.item())]
    found = on_all_ranks(([plan.origin(*place) for batch in bad for place in batch.places], _all(plan, batches)))
    rows = [row for of_rank, _ in found for row in of_rank] or [row for _, of_rank in found for row in of_rank]
    more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {grad_norm}"
    return f"{what}: not applied; its rows: {'; '.join(rows[:_SHOWN_ROWS])}{more}"


def _all(plan: StepPlan, batches: Sequence[Batch]) -> list[str]:
    return [plan.origin(*place) for batch in batches for place in batch.places]
