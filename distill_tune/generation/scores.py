"""How good an answer is: a number, the more the better. A score of one's own is a function of the answer."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal

from distill_tune.config.components import find_component
from distill_tune.errors import UserError
from distill_tune.generation.answers import Answer

_NUMBER = re.compile(
    r"((?<![\w.)\]}])-)?"  # behind a letter, digit or bracket it is no sign: 5-10 ends with 10
    r"(\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)(?:\s*\^\s*\{?\s*(-?\d+)|\s*/\s*(\d[\d,]*))?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}|(\d)\s*(\d))")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_CLOSE = Fraction(1, 10**6)
_MOST_DIGITS = 1000  # of a number that is one; a model that goes round in circles writes longer ones


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely the model itself holds its answer: the mean log-probability of a token."""

    def __call__(self, answer: Answer) -> float:
        if answer.log_prob is None:
            raise ValueError(f"{answer.model} tells no log-probabilities of its answers")
        return answer.log_prob / len(answer.tokens)


@dataclasses.dataclass(frozen=True)
class Match:
    r"""1 where an answer is right, else 0.

    Args:
        column: of the row, with the right answer.
        by: ``exact``: the same words; ``numeric``: the last number of both is the same; ``math``: the package
            math-verify holds both for the same. What stands in ``\boxed{}`` counts alone, where there is such.
    """

    column: str = "reference"
    by: Literal["exact", "numeric", "math"] = "exact"

    def __post_init__(self) -> None:
        if self.by == "math":
            _math_verify()

    def check(self, row: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: answers to this row cannot be held against anything.
        """
        if self.column not in row:
            raise ValueError(f"the row has no column {self.column}; it has {', '.join(map(str, row)) or 'none'}")
        wanted = str(row[self.column])
        if self.by == "numeric" and _last_number(_final(wanted)) is None:
            raise ValueError(f"the column {self.column} has no number: {wanted[:40]!r}")

    def __call__(self, answer: Answer) -> float:
        self.check(answer.row)
        wanted, found = str(answer.row[self.column]), answer.text
        if self.by == "math":
            parse, verify = _math_verify()
            return float(verify(parse(wanted), parse(found)))
        if self.by == "exact":
            return float(is_same_answer(wanted, found))
        wanted, found = _final(wanted), _final(found)
        number, other = _last_number(wanted), _last_number(found)
        return float(number is not None and other is not None and abs(number - other) <= _CLOSE * abs(number))


def is_same_answer(text: str, other: str) -> bool:
    r"""Whether two answers are the same words: case, runs of white space, and spaces and full stops at both ends do not
    count; of an answer with ``\boxed{}`` nothing but what stands in the last of these does."""
    return _plain(_final(text)) == _plain(_final(other))


def _final(text: str) -> str:
    boxed = _BOXED.findall(text)
    return boxed[-1] if boxed else text


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def _last_number(text: str) -> Fraction | None:
    """None where there is none, or the last is divided by zero or too long."""
    text = _FRACTION.sub(lambda found: "{}/{}".format(*filter(None, found.groups())), text.replace("\u2212", "-"))
    found = _NUMBER.findall(text)
    if not found:
        return None
    sign, digits, power, below = (part.replace(",", "") for part in found[-1])
    mantissa, _, exponent = digits.lower().partition("e")
    if len(mantissa) * max(1, abs(_small(power))) + abs(_small(exponent)) + len(below) > _MOST_DIGITS:
        return None
    try:
        number = Fraction(digits) ** int(power or 1) / Fraction(below or 1)
    except ZeroDivisionError:
        return None
    return -number if sign else number


def _small(exponent: str) -> int:
    """An exponent, of which more digits are as good as too many."""
    return int(exponent[:6] or 0)


def _math_verify() -> tuple[Callable[..., list[object]], Callable[..., bool]]:
    """
    Raises:
        UserError: the package is not there.
    """
    try:
        return find_component("math_verify.parse"), find_component("math_verify.verify")
    except UserError as error:
        raise UserError(f"by=math: {error}; pip install 'distill-tune[math]'") from error
