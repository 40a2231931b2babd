"""Numbers with what they count, as they are told to a user."""


def counted(number: int, what: str) -> str:
    """``1 row``, ``1,200 rows``, ``2 batches``."""
    plural = "es" if what.endswith(("ch", "ss")) else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"
