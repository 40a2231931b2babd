"""What the value of a key may be: in words, for a message and a page, and as a test."""

import dataclasses
import re
import sys
from collections.abc import Callable
from typing import Any

from omegaconf import ListConfig

from distill_tune.config.nodes import is_component


@dataclasses.dataclass(frozen=True)
class Kind:
    """
    Attributes:
        text: what a value must be.
        fits: whether one is.
        further: what else is wrong with one that is, if anything.
        hint: what a message adds to ``text``.
        takes_null: whether null is a value besides.
    """

    text: str
    fits: Callable[[Any], bool]
    further: Callable[[Any], str | None] = lambda value: None
    hint: str = ""
    takes_null: bool = False

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, in words that follow it; None where nothing is."""
        if value is None and self.takes_null:
            return None
        return self.further(value) if self.fits(value) else f"must be {self.text}{self.hint}"

    def or_null(self) -> "Kind":
        return dataclasses.replace(self, text=f"{self.text} or null", takes_null=True)

    def or_schedule(self) -> "Kind":
        """Its values are checked once the run's length is known."""
        fits, hint = self.fits, ", {_component_: distill_tune.training.Linear, ...}"
        return Kind(f"{self.text}, or a schedule", lambda value: COMPONENT.fits(value) or fits(value), hint=hint)


def whole(least: int) -> Kind:
    return Kind(f"a whole number of at least {least}", lambda value: type(value) is int and value >= least)


def number(least: float, most: float = sys.float_info.max) -> Kind:
    text = f"a number of at least {least:g}" if most == sys.float_info.max else f"a number from {least:g} to {most:g}"
    return Kind(text, lambda value: type(value) in (int, float) and least <= value <= most)


ABOVE_0 = Kind("a number above 0", lambda value: number(0).fits(value) and value > 0)


def one_of(*choices: str) -> Kind:
    return Kind(f"one of {', '.join(choices)}", lambda value: value in choices)


def like(text: str, pattern: str, hint: str = "") -> Kind:
    """Text that a pattern fits."""
    fits = re.compile(pattern, re.DOTALL).fullmatch
    return Kind(text, lambda value: isinstance(value, str) and fits(value) is not None, hint=hint)


def fault_of_list(
    value: Any, of_all: Callable[[ListConfig], str | None] = lambda entries: None, takes_null: bool = False
) -> str | None:
    """
    Args:
        takes_null: an entry may be null.
    """
    if not isinstance(value, ListConfig):
        return None
    if not value:
        return "is an empty list"
    of_entry = COMPONENT.or_null() if takes_null else COMPONENT
    return next((fault for entry in value if (fault := of_entry.fault(entry))), None) or of_all(value)


COMPONENT = Kind("a component", is_component, hint=": a mapping whose _component_ names what to call")
COMPONENTS = Kind(
    "a component, or a list of them",
    lambda value: isinstance(value, ListConfig) or is_component(value),
    fault_of_list,
    COMPONENT.hint,
)
WARM_UP = Kind(
    "a whole number of steps, or a share of the run's, below 1",
    lambda value: whole(0).fits(value) or (isinstance(value, float) and 0 < value < 1),
)
