"""What the value of a key may be: in words, for a message and a page, and as a test."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from distill_tune.config.nodes import is_component


@dataclasses.dataclass(frozen=True)
class Kind:
    """
    Attributes:
        text: what a value must be.
        fits: whether one is.
        further: what else is wrong with one that is, if anything.
        hint: what a message adds to ``text``.
    """

    text: str
    fits: Callable[[Any], bool]
    further: Callable[[Any], str | None] = lambda value: None
    hint: str = ""

    def fault(self, value: Any) -> str | None:
        """What is wrong with a value, in words that follow it; None where nothing is."""
        return self.further(value) if self.fits(value) else f"must be {self.text}{self.hint}"

    def or_null(self) -> "Kind":
        fits = self.fits
        return dataclasses.replace(self, text=f"{self.text} or null", fits=lambda value: value is None or fits(value))

    def or_schedule(self) -> "Kind":
        """Its values are checked once the run's length is known."""
        return Kind(
            f"{self.text}, or a schedule",
            lambda value: COMPONENT.fits(value) or self.fits(value),
            hint=", {_component_: distill_tune.training.Linear, ...}",
        )


def whole(least: int) -> Kind:
    return Kind(f"a whole number of at least {least}", lambda value: type(value) is int and value >= least)


def number(least: float, most: float = sys.float_info.max) -> Kind:
    text = f"a number of at least {least:g}" if most == sys.float_info.max else f"a number from {least:g} to {most:g}"
    return Kind(text, lambda value: type(value) in (int, float) and least <= value <= most)


ABOVE_0 = Kind("a number above 0", lambda value: number(0).fits(value) and value > 0)


def one_of(*choices: str) -> Kind:
    return Kind(f"one of {', '.join(choices)}", lambda value: value in choices)


def list_of(*choices: str) -> Kind:
    return Kind(
        f"a list of {', '.join(choices)}",
        lambda value: isinstance(value, ListConfig) and all(item in choices for item in value),
    )


def _like(text: str, pattern: str, hint: str = "") -> Kind:
    """Text that a pattern fits."""
    fits = re.compile(pattern, re.DOTALL).fullmatch
    return Kind(text, lambda value: isinstance(value, str) and fits(value) is not None, hint=hint)


def _is_day(value: Any) -> bool:
    try:
        return bool(date.fromisoformat(value))
    except (TypeError, ValueError):
        return False


_FP16 = "is not supported: gradients underflow in fp16 without loss scaling; take bf16 or fp32"


def _no_folder_for(value: str) -> str | None:
    files = (folder for folder in (Path(value), *Path(value).parents) if os.path.exists(folder) and not folder.is_dir())
    return next((f"cannot be made: {file} is a file" for file in files), None)


def _no_checkpoint(value: Any) -> str | None:
    is_named = isinstance(value, str) and value != "auto"
    return "no such folder" if is_named and not os.path.isdir(value) else None


def _fault_of_list(value: Any, of_all: Callable[[ListConfig], str | None] = lambda entries: None) -> str | None:
    if not isinstance(value, ListConfig):
        return None
    if not value:
        return "is an empty list"
    return next((fault for entry in value if (fault := COMPONENT.fault(entry))), None) or of_all(value)


def _of_teachers(entries: ListConfig) -> str | None:
    names = {str(entry.get("name", number)) for number, entry in enumerate(entries)}
    return "two teachers have one name" if len(names) < len(entries) else None


def _of_datasets(entries: ListConfig) -> str | None:
    weighted = sum("weight" in entry for entry in entries)
    return "give every dataset in the list a weight, or none" if 0 < weighted < len(entries) else None


FLAG = Kind("True or False", lambda value: isinstance(value, bool))
TEXT = _like("text", ".+")
DAY = Kind("a day, as 2026-03-01", _is_day)
DEVICE = _like("cpu, cuda, cuda:N, mps or auto (the fastest that is there)", r"(cpu|cuda|mps|auto)(:\d+)?")
DTYPE = Kind(
    "one of bf16, fp32",
    lambda value: value in ("bf16", "fp32", "fp16"),
    lambda value: _FP16 if value == "fp16" else None,
)
FOLDER_TO_WRITE = Kind("a folder's path", TEXT.fits, _no_folder_for)
RESUME = Kind(
    "auto, True, False or a folder checkpoints/step_N", lambda value: isinstance(value, bool | str), _no_checkpoint
)
TEMPLATE = _like(
    "text with {input}",
    r".*\{.*\}.*",
    " where the row's own prompt goes, or the name of another column in braces",
)
COMPONENT = Kind("a component", is_component, hint=": a mapping whose _component_ names what to call")
COMPONENTS = Kind(
    "a component, or a list of them",
    lambda value: isinstance(value, ListConfig) or is_component(value),
    _fault_of_list,
    COMPONENT.hint,
)
TEACHERS = dataclasses.replace(COMPONENTS, further=lambda value: _fault_of_list(value, _of_teachers))
DATASETS = dataclasses.replace(COMPONENTS, further=lambda value: _fault_of_list(value, _of_datasets))
LIST_OF_COMPONENTS = Kind("a list of components", lambda value: isinstance(value, ListConfig), _fault_of_list)
SETTINGS = Kind("a mapping", lambda value: isinstance(value, DictConfig))
WARM_UP = Kind(
    "a whole number of steps, or a share of the run's, below 1",
    lambda value: whole(0).fits(value) or (isinstance(value, float) and 0 < value < 1),
)
