"""One day for all that a run's chat template writes."""

import contextlib
from datetime import date

from distill_tune import cache
from distill_tune.config.files import local_path
from distill_tune.data.dates import set_today
from distill_tune.errors import UserError
from distill_tune.training.distributed import from_main_process
from distill_tune.training.state import TrainingState


def use_day(day: str | None, state: TrainingState | None = None, teacher_cache: str | None = None) -> None:
    """Have rows tokenised as of one day, the same on every rank; it is written down with config and checkpoints.

    Templates that write the date (Llama 3.1's and later) would else give other rows after midnight, and a run that is
    resumed on another day would not go on.

    Args:
        day: as ``2026-03-01``; None for the day on which ``state``'s run began, or without one, for that of
            ``teacher_cache``, or where no cache is there, for today.
        teacher_cache: folder of a cache, which knows no rows of another day.
    """
    of_others = (state and state.date) or (teacher_cache and _day_of_cache(teacher_cache))
    set_today(from_main_process(day or of_others or date.today().isoformat()))


def _day_of_cache(folder: str) -> str | None:
    with contextlib.suppress(UserError):  # told with what else is wrong, when models are built
        if was := cache.cache_there(local_path(folder)):
            return was.date
    return None
