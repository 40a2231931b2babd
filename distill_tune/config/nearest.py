"""What somebody may have meant by a name that there is not."""

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The few names that resemble ``name``, best first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=cutoff)


def did_you_mean(names: Sequence[str], otherwise: str = "") -> str:
    """The end of a fault's message."""
    return f", did you mean {' or '.join(names)}?" if names else otherwise
