"""How good an answer is: a number, the more the better. A score of one's own is a function of the answer."""

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from distill_tune.config.components import find_component
from distill_tune.errors import UserError
from distill_tune.generation.answers import Answer

_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s*/\s*\d+)?")
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_CLOSE = Fraction(1, 10**6)


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

    def __call__(self, answer: Answer) -> float:
        if self.column not in answer.row:
            raise ValueError(f"the row has no column {self.column}; it has {', '.join(map(str, answer.row))}")
        wanted, found = str(answer.row[self.column]), answer.text
        if self.by == "math":
            parse, verify = _math_verify()
            return float(verify(parse(wanted), parse(found)))
        wanted, found = _final(wanted), _final(found)
        if self.by == "exact":
            return float(_plain(wanted) == _plain(found))
        number, other = _last_number(wanted), _last_number(found)
        if number is None:
            raise ValueError(f"the column {self.column} has no number: {wanted[:40]!r}")
        return float(other is not None and abs(number - other) <= _CLOSE * max(Fraction(1), abs(number)))


def _final(text: str) -> str:
    boxed = _BOXED.findall(text)
    return boxed[-1] if boxed else text


def _plain(text: str) -> str:
    return " ".join(text.split()).strip(" .").casefold()


def _last_number(text: str) -> Fraction | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    above, _, below = found[-1].replace(",", "").partition("/")
    return Fraction(above) / Fraction(below.strip()) if below and Fraction(below) else Fraction(above.strip())


def _math_verify() -> tuple[Callable[..., list[object]], Callable[..., bool]]:
    """
    Raises:
        UserError: the package is not there.
    """
    try:
        return find_component("math_verify.parse"), find_component("math_verify.verify")
    except UserError as error:
        raise UserError(f"by=math: {error}; pip install 'distill-tune[math]'") from error
