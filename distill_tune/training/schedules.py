"""Loss weights that change during a run: a value is a function of the step, so a resumed run needs no state."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from omegaconf import DictConfig

from distill_tune.config.components import build
from distill_tune.errors import UserError


class Schedule(Protocol):
    """A number for each time of a run."""

    def value(self, done: float, length: float) -> float:
        """
        Args:
            done: steps or epochs before this one, as :attr:`by` says; whole.
            length: of the run, in the same unit.
        """
        ...

    @property
    def by(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class _Held:
    start: float
    by: Literal["step", "epoch"] = "step"
    hold: float = 0
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.by not in ("step", "epoch"):
            raise ValueError(f"by={self.by}: must be step or epoch")
        if self.hold < 0:
            raise ValueError(f"hold={self.hold}: must be 0 or more")

    def value(self, done: float, length: float) -> float:
        value = self._after(max(0.0, done - self.hold), max(1.0, length - self.hold))
        return value if self.floor is None else max(self.floor, value)

    def _after(self, done: float, length: float) -> float:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Linear(_Held):
    """From ``start`` by ``change`` each step or epoch, or to ``end`` at the run's end.

    ``max(3.0 - 0.5 * epoch, 1.0)`` is ``{start: 3.0, change: -0.5, by: epoch, floor: 1.0}``.

    Attributes:
        start: the value at first.
        by: ``step`` or ``epoch``, the unit of all times; epochs are counted from 0.
        hold: so many steps or epochs before it begins to change.
        floor: no value below this one.
        change: added each step or epoch.
        end: instead, the value to reach.
        over: steps or epochs in which ``end`` is reached after ``hold``; default the rest of the run.
    """

    change: float | None = None
    end: float | None = None
    over: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.change is None) == (self.end is None):
            raise ValueError("change or end: give one of them")

    def _after(self, done: float, length: float) -> float:
        if self.end is None:
            return self.start + (self.change or 0.0) * done
        return self.start + (self.end - self.start) * min(1.0, done / (self.over or length))


@dataclasses.dataclass(frozen=True)
class Cosine(_Held):
    """From ``start`` to ``end`` along half a cosine; the other attributes are those of :class:`Linear`."""

    end: float = 0.0
    over: float | None = None

    def _after(self, done: float, length: float) -> float:
        along = min(1.0, done / (self.over or length))
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * along)) / 2


@dataclasses.dataclass(frozen=True)
class Exponential(_Held):
    """``start * factor ** t``, t in steps or epochs; the other attributes are those of :class:`Linear`."""

    factor: float = 0.5

    def _after(self, done: float, length: float) -> float:
        return self.start * self.factor**done


_BOUNDS = {"kd_ratio": (0.0, 1.0), "temperature": (1e-6, math.inf), "rollouts.lmbda": (0.0, 1.0)}


class Schedules:
    """The loss's weights at each step.

    Args:
        steps_per_epoch, total_steps: of the run.
        values: by name, each a number, a schedule, or a component that makes one.

    Raises:
        UserError: a component refuses its arguments, or a schedule leaves the range of its key.
    """

    def __init__(self, steps_per_epoch: int, total_steps: int, values: Mapping[str, Any]) -> None:
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._values = {
            name: build(name, value) if isinstance(value, DictConfig) else value for name, value in values.items()
        }
        for name in self._values:
            least, most = _BOUNDS.get(name, (0.0, math.inf))
            for step in self.some_steps:
                if not least <= (value := self.at(step)[name]) <= most:
                    raise UserError(
                        f"{name}: its schedule gives {value:g} at step {step}; "
                        f"it must stay from {least:g} to {most:g}: set floor, end or over"
                    )

    @property
    def some_steps(self) -> list[int]:
        """Of a run, at which values are looked at beforehand; the first and the last are among them."""
        every = max(1, self._total_steps // 1000)
        return sorted({0, max(0, self._total_steps - 1), *range(0, self._total_steps, every)})

    def at(self, step: int) -> dict[str, float]:
        """The values that hold for the step after ``step`` steps."""
        return {name: self._at(value, step) for name, value in self._values.items()}

    def _at(self, value: Any, step: int) -> float:
        if isinstance(value, int | float):
            return float(value)
        if value.by == "epoch":
            return value.value(step // self._steps_per_epoch, self._total_steps / self._steps_per_epoch)
        return value.value(step, self._total_steps)
