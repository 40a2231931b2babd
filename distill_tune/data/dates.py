"""The day that a chat template writes where it asks for one: a run has one, whenever its rows are tokenised."""

from datetime import datetime

_of_run: datetime | None = None


def today() -> datetime:
    """The run's day, at midnight; now, outside of a run."""
    return _of_run or datetime.now()


def strftime(form: str) -> str:
    """The run's day as a template asks for it: ``%d %b %Y``."""
    return today().strftime(form)


def set_today(day: str) -> None:
    """
    Args:
        day: as ``2026-03-01``.
    """
    global _of_run
    _of_run = datetime.fromisoformat(day)


def day_of_run() -> str | None:
    """As :func:`set_today` was given it; None outside of a run."""
    return None if _of_run is None else _of_run.date().isoformat()
