"""Numbers with what they count, as they are told to a user."""


def counted(number: int, what: str) -> str:
    """``1 row``, ``1,200 rows``, ``2 batches``."""
    plural = "es" if what.endswith(("ch", "ss")) else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def rough_duration(seconds: float) -> str:
    """``7 s``, ``12 min``, ``3.4 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"
