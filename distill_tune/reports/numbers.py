"""Figures as people read them: four digits of what was measured, and a unit."""

from datetime import timedelta
from typing import Any

from distill_tune.reports.run_files import is_figure

NOTHING = "–"  # where a figure is missing


def tidy(value: Any, digits: int = 4) -> str:
    """``0.002``, ``1.235``, ``12,346``, ``3.1e-05``; a dash for what is no finite number."""
    if not is_figure(value):
        return NOTHING
    if value == int(value) and abs(value) < 1e12:
        return f"{int(value):,}"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 2}e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def short(value: float) -> str:
    """With k, M or B behind it: ``1.2M``."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def percent(share: Any, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %" if is_figure(share) else NOTHING


def duration(seconds: Any) -> str:
    """``0:01:05``, ``2 days, 3:00:00``."""
    return str(timedelta(seconds=round(seconds))) if is_figure(seconds) else NOTHING
