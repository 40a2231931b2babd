"""One day for all that a run's chat template writes."""

from datetime import date

from distill_tune.data.dates import set_today
from distill_tune.training.distributed import from_main_process
from distill_tune.training.state import TrainingState


def use_day(day: str | None, state: TrainingState | None = None) -> None:
    """Have rows tokenised as of one day, the same on every rank; it is written down with config and checkpoints.

    Templates that write the date (Llama 3.1's and later) would else give other rows after midnight, and a run that is
    resumed on another day would not go on.

    Args:
        day: as ``2026-03-01``; None for the day on which ``state``'s run began, or without one, for today.
    """
    set_today(from_main_process(day or (state and state.date) or date.today().isoformat()))
