"""A row of the table of what was found of an exported folder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Check:
    """
    Attributes:
        found: what was seen, in words.
    """

    name: str
    found: str
    passed: bool
