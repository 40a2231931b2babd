"""What an item of the first hour is, and what it can come to."""

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

OK, OFF, FAILED, NEEDS_CUDA, NOT_MEASURED = "ok", "off", "failed", "needs CUDA", "not measured"
ITEM_LOG = "item.log"  # what an item has written to stdout and stderr


@dataclasses.dataclass(frozen=True)
class Item:
    """
    Attributes:
        section, name: as the report says them.
        function: ``module:function``, imported in the worker alone; called with :class:`Settings` and ``arguments``.
            It returns a :class:`Deviation` or a dict of figures, or raises.
        needs_cuda: it is a branch that a CPU has not.
        alone: on CUDA it gets a process of its own, whose memory nobody else has used.
        seconds: after which its process is ended.
    """

    section: str
    name: str
    function: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    needs_cuda: bool = False
    alone: bool = False
    seconds: int = 1200


@dataclasses.dataclass(frozen=True)
class Settings:
    """
    Attributes:
        device: ``cuda`` or ``cpu``.
        small: tiny sizes.
        folder: for what items write; removed at the end.
    """

    device: str
    small: bool
    folder: Path


class Deviation(NamedTuple):
    """How far something is from the CPU's numbers: norm of the difference over norm of those, and how far it may be."""

    off: float
    bound: float
    told: str = ""


class NotMeasured(Exception):
    """What an item needs is not there; the message says what."""


def last_line(told: str) -> str:
    """Of an error's text the line that names it: the last that begins with an error's class, else the last one."""
    lines = [line.strip() for line in told.strip().splitlines()] or [""]
    named = [line for line in lines if _NAMED.match(line) and "ChildFailedError" not in line]  # torchrun's own
    return named[-1] if named else lines[-1]


_NAMED = re.compile(r"(\[rank\d+\]: *)?[\w.]*(Error|Exception|Exit|Interrupt)\b")


def shortened(told: str, most: int = 8_000) -> str:
    """``told`` of at most about ``most`` characters: its beginning and its end, where an error's text says most."""
    return told if len(told) <= most else f"{told[: most // 4]}\n...\n{told[-most * 3 // 4 :]}"
