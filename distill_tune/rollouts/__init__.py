"""On-policy distillation: rows whose answers the student itself, or its teacher, writes while it trains."""

from distill_tune.rollouts.build import build_rows
from distill_tune.rollouts.on_policy import OnPolicy
from distill_tune.rollouts.rows_on_policy import RowsOnPolicy
from distill_tune.rollouts.step_rows import RowsOfData, StepRows

__all__ = ["OnPolicy", "RowsOfData", "RowsOnPolicy", "StepRows", "build_rows"]
