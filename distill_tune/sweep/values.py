"""What a sweep's command line varies: keys with several values, or a range."""

import dataclasses
import functools
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence

from distill_tune.config.load import read_value
from distill_tune.errors import CollectedFaults, UserError

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\.\.({_NUMBER})\s*")
_CLOSES = {"[": "]", "{": "}", "(": ")"}
_DIGITS = 4  # of a number that is drawn
_MOST_TRIES = 1000  # to draw a point that is not there yet

Settings = Mapping[str, str]  # of a trial, in the order of the command line: key -> value as YAML


@dataclasses.dataclass(frozen=True)
class Values:
    """``key=a,b,c``: each is YAML."""

    key: str
    texts: tuple[str, ...]

    @property
    def to_check(self) -> tuple[str, ...]:
        """What has to be right for every trial to be."""
        return self.texts

    def draw(self, generator: random.Random) -> str:
        return generator.choice(self.texts)

    def __str__(self) -> str:
        return f"{self.key}: {', '.join(self.texts)}"


@dataclasses.dataclass(frozen=True)
class Range:
    """``key=low..high``, both ends included.

    Attributes:
        is_log: whether all orders of magnitude are equally likely, rather than all numbers.
        is_whole: whether it has whole numbers alone.
    """

    key: str
    low: float
    high: float
    is_log: bool
    is_whole: bool

    @property
    def to_check(self) -> tuple[str, ...]:
        return self.text(self.low), self.text(self.high)

    def text(self, value: float) -> str:
        """A number of it as YAML, of so many digits as matter."""
        if self.is_whole:
            return str(round(value))
        rounded = float(f"{value:.{_DIGITS}g}")
        return repr(rounded if self.low <= rounded <= self.high else value)

    def draw(self, generator: random.Random) -> str:
        if self.is_whole:
            return self.text(generator.randint(round(self.low), round(self.high)))
        if self.is_log:
            return self.text(math.exp(generator.uniform(math.log(self.low), math.log(self.high))))
        return self.text(generator.uniform(self.low, self.high))

    def __str__(self) -> str:
        kind = "on a log scale" if self.is_log else "whole numbers" if self.is_whole else "evenly"
        return f"{self.key}: {self.text(self.low)} to {self.text(self.high)}, {kind}"


Axis = Values | Range


def read_axes(overrides: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """The overrides that all trials share, and the keys that vary.

    A comma outside of brackets, braces and quotes parts values, so that ``key=[a,b],[c]`` has two, and a text with
    commas is quoted in YAML's way: ``key="one, two"``. ``low..high`` is a range: on a log scale where an end is written
    with an exponent (``1e-5..1e-3``), of whole numbers where both ends are, else evenly.

    Raises:
        UserError: a value that is none, is there twice, or is no YAML; a key that is given twice.
    """
    shared, axes, faults = list[str](), list[Axis](), CollectedFaults("the command line")
    for override in overrides:
        with faults:
            axis = None if override.startswith("~") else _axis(override)
            shared, axes = ([*shared, override], axes) if axis is None else (shared, [*axes, axis])
    keys = [axis.key for axis in axes]
    given = [override.lstrip("+").partition("=")[0] for override in shared]
    with faults:
        for key in keys:
            if keys.count(key) > 1 or key in given:
                raise UserError(f"{key}: given twice; name all its values in one list")
    faults.tell()
    return shared, axes


def _axis(override: str) -> Axis | None:
    """None of what has one value."""
    key, _, text = override.lstrip("+").partition("=")  # a key that varies may be new, or not
    if found := _RANGE.fullmatch(text):
        return _range(override, key, *found.groups())
    texts = split_values(override, text)
    if len(texts) == 1:
        return None
    known = [same(key, one) for one in texts]
    if double := next((one for one, value in zip(texts, known, strict=True) if known.count(value) > 1), None):
        raise UserError(f"{override}: {double} is there twice; name each value once")
    return Values(key, tuple(texts))


def _range(override: str, key: str, low: str, high: str) -> Range:
    is_log = "e" in (low + high).lower()
    is_whole = all(re.fullmatch(r"[+-]?\d+", end) for end in (low, high))
    found = Range(key, float(low), float(high), is_log, is_whole)
    if found.low >= found.high:
        raise UserError(f"{override}: a range goes from a smaller number to a larger one")
    if is_log and found.low <= 0:
        raise UserError(f"{override}: an exponent asks for a log scale, which begins above 0; write {high} without it")
    return found


def split_values(override: str, text: str) -> list[str]:
    """``a,[b,c],"d,e"`` -> ``a``, ``[b,c]``, ``"d,e"``.

    Raises:
        UserError: brackets or quotes that do not close; nothing between two commas.
    """
    parts, open_until, quote, before = [""], list[str](), "", ","
    for character in text:
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"" and before in ",[{(:":  # within a word it is an apostrophe
            quote = character
        elif character in _CLOSES:
            open_until.append(_CLOSES[character])
        elif open_until and character == open_until[-1]:
            open_until.pop()
        elif character == "," and not open_until:
            parts.append("")
            before = character
            continue
        parts[-1] += character
        before = before if character.isspace() and not quote else character
    if quote or open_until:
        raise UserError(f"{override}: has no {quote or open_until[-1]} at its end")
    if len(parts) > 1 and not all(part.strip() for part in parts):
        raise UserError(f"{override}: nothing stands beside a comma; write null for no value, or quote the whole text")
    return [part.strip() for part in parts] if len(parts) > 1 else parts


@functools.lru_cache(maxsize=10_000)
def same(key: str, text: str) -> str:
    """What two ways to write a value have in common: 0.5 and 0.50."""
    return json.dumps(read_value(f"{key}={text}"), sort_keys=True, default=str)


def overrides_of(settings: Settings) -> list[str]:
    return [f"{key}={text}" for key, text in settings.items()]


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every combination, the last key varying fastest.

    Raises:
        UserError: a range, which has no end of values.
    """
    for axis in axes:
        if isinstance(axis, Range):
            raise UserError(
                f"{axis.key}: a range has no grid; list values, or draw from it: --random 10, or --search 20"
            )
    return [dict(zip([axis.key for axis in axes], texts, strict=True)) for texts in itertools.product(*_texts(axes))]


def _texts(axes: Sequence[Axis]) -> Iterator[tuple[str, ...]]:
    return (axis.texts for axis in axes if isinstance(axis, Values))


def grid_size(axes: Sequence[Axis]) -> float:
    """How many combinations there are; infinite where a key has a range."""
    return math.prod(len(axis.texts) if isinstance(axis, Values) else math.inf for axis in axes)


def random_points(axes: Sequence[Axis], number: int) -> list[dict[str, str]]:
    """So many different ones, the same at each call; of a larger number these are the first.

    Raises:
        UserError: there are not so many.
    """
    generator = random.Random(0)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for _ in range(_MOST_TRIES * number):
        if len(found) < number:
            point = {axis.key: axis.draw(generator) for axis in axes}
            found.setdefault(tuple(point.values()), point)
    if len(found) < number:
        raise UserError(f"--random {number}: there are {len(found)} combinations; leave it out to take them all")
    return list(found.values())


def to_check(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Points that have each value, and both ends of each range, at least once: the first of all, and what differs from
    it in one key."""
    first = {axis.key: axis.to_check[0] for axis in axes}
    return [first, *(first | {axis.key: text} for axis in axes for text in axis.to_check[1:])]
