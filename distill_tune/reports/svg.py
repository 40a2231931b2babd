"""A chart as SVG, drawn for both abscissas: steps and tokens. The page's script changes curves alone, never a scale."""

import bisect
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from distill_tune.reports.curves import MOST_WITH_BANDS, Chart, Curve, smoothed
from distill_tune.reports.numbers import short

WIDTH, HEIGHT = 400, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24  # around the curves
COLOURS = 8  # that the style sheet has for runs; further ones are dashed
SMOOTHING, FEWEST_SMOOTHED = 0.7, 20  # as the page opens; points of a curve
_ROOM = 0.04  # of the ordinate, above and below
_NEAR_ZERO = 0.05  # of the last step: a run that begins before it is drawn from zero on


@dataclasses.dataclass(frozen=True)
class Scale:
    """From figures to places in a picture.

    Attributes:
        low, high: figures at both ends, their logarithms to base 10 where it is logarithmic.
        start, end: places of these.
        is_whole: figures are whole, as steps and tokens are.
    """

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False
    is_whole: bool = False

    def __call__(self, value: float) -> float:
        at = math.log10(value) if self.is_logarithmic else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round figures, at most so many."""
        if self.is_logarithmic:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            return [10.0**power for power in powers[:: -(-len(powers) // most) or 1]]
        step = max(_round_step((self.high - self.low) / most), float(self.is_whole))
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least so much."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def abscissa(values: Sequence[float]) -> Scale:
    """What is one alone stands in the middle."""
    low, high = min(values), max(values)
    if low == high:
        low, high = 0.0, 2 * high or 1.0
    elif 0 < low < _NEAR_ZERO * high:
        low = 0.0
    return Scale(low, high, LEFT, WIDTH - RIGHT, is_whole=True)


def ordinate(chart: Chart) -> Scale:
    figures = [value for curve in chart.curves for of in (curve.values, curve.low, curve.high) for value in of]
    if chart.is_logarithmic:
        figures = [math.log10(figure) for figure in figures]
    low, high = min(figures), max(figures)
    spread = high - low
    if spread <= 1e-9 * max(abs(low), abs(high)):  # all the same
        spread = abs(high) or 1.0
    if not chart.is_logarithmic and low >= 0 and (chart.figure.from_zero or low < spread / 2):
        low, room = 0.0, 0.0
        spread = high or 1.0
    else:
        room = _ROOM * spread
    return Scale(low - room, high + _ROOM * spread, HEIGHT - BOTTOM, TOP, chart.is_logarithmic)


def drawn(chart: Chart, tokens: Mapping[int, tuple[Sequence[float], Sequence[float]]]) -> str:
    """
    Args:
        tokens: by run, some steps and the tokens until then; empty where they are not known.
    """
    y = ordinate(chart)
    all_steps = [step for curve in chart.curves for step in (curve.steps[0], curve.steps[-1])]
    x = abscissa(all_steps)
    ends = [tokens_of(step, *tokens[curve.run]) for curve in chart.curves for step in (curve.steps[0], curve.steps[-1])]
    scales: dict[str, Any] = {"x": _ends(x), "t": _ends(abscissa(ends)), "y": _ends(y), "log": int(y.is_logarithmic)}
    with_raw = len({curve.run for curve in chart.curves}) <= MOST_WITH_BANDS
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'data-scales="{escape(json.dumps(scales, separators=(",", ":")))}">',
        *_across(y),
        f'<path class="grid" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>',
        _along(x, "steps"),
        _along(abscissa(ends), "tokens"),
        *(_curve(number, curve, x, y, chart.figure.smooths, with_raw) for number, curve in enumerate(chart.curves)),
        *(_marks(run, steps, x) for run, steps in chart.marks.items()),
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/></svg>',
    ]
    return "".join(parts)


def tokens_of(step: float, steps: Sequence[float], tokens: Sequence[float]) -> float:
    """That were read until a step, on the line between the two nearest that are known."""
    if not steps:
        return step
    after = min(bisect.bisect_left(steps, step), len(steps) - 1)
    before = max(after - 1, 0)
    if steps[after] == steps[before]:
        return tokens[after]
    share = (step - steps[before]) / (steps[after] - steps[before])
    return tokens[before] + share * (tokens[after] - tokens[before])


def colour_of(run: int) -> str:
    """The classes that the style sheet has for a run."""
    return f"c{run % COLOURS}" + (" dashed" if run // COLOURS % 2 else "")


def _ends(scale: Scale) -> list[float]:
    return [float(f"{scale.low:.6g}"), float(f"{scale.high:.6g}")]


def _across(y: Scale) -> list[str]:
    lines = []
    ticks = y.ticks(5)
    for tick, label in zip(ticks, _labels(ticks, y.is_logarithmic), strict=True):
        at = _place(y(tick))
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{at}" dy=".33em" text-anchor="end">{label}</text>')
    return lines


def _along(x: Scale, what: str) -> str:
    lines = [f'<g class="by-{what}">']
    ticks = x.ticks(5)
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        at = _place(x(tick))
        anchor = "end" if x(tick) > WIDTH - RIGHT - 14 else "middle"
        lines.append(f'<path class="grid" d="M{at} {HEIGHT - BOTTOM}v4"/>')
        lines.append(f'<text x="{at}" y="{HEIGHT - 7}" text-anchor="{anchor}">{label}</text>')
    return "".join([*lines, "</g>"])


def _labels(ticks: Sequence[float], is_logarithmic: bool = False) -> list[str]:
    """All with as many decimals as tell them apart."""
    most = max(map(abs, ticks), default=0.0)
    if is_logarithmic or most >= 10_000 or 0 < most < 1e-3:
        return [short(tick) if abs(tick) >= 1000 else f"{tick:.3g}" for tick in ticks]
    step = min((after - before for before, after in itertools.pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in ticks]


def _curve(number: int, curve: Curve, x: Scale, y: Scale, smooths: bool, with_raw: bool) -> str:
    def path(kind: str, places: str) -> str:
        classes = f"{kind} run{curve.run} {colour_of(curve.run)}"
        return f'<path class="{classes}" data-curve="{number}" d="{places}"/>'

    plain = _line(curve.steps, curve.values, x, y)
    if curve.is_validation or len(curve.steps) == 1:
        dots = "".join(f"M{_place(x(at))} {_place(y(of))}h0" for at, of in zip(curve.steps, curve.values, strict=True))
        kind = "dots" if curve.is_validation else "dots alone"
        return (path("between", plain) if len(curve.steps) > 1 else "") + path(kind, dots)
    is_smoothed = smooths and len(curve.values) >= FEWEST_SMOOTHED
    line = path("line", _line(curve.steps, smoothed(curve.values, SMOOTHING), x, y) if is_smoothed else plain)
    if curve.low:
        around = _line([*curve.steps, *reversed(curve.steps)], [*curve.high, *reversed(curve.low)], x, y)
        return path("band", f"{around}z") + line
    return path("raw", plain) + line if is_smoothed and with_raw else line


def _line(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale) -> str:
    return "M" + "L".join(f"{_place(x(at))} {_place(y(value))}" for at, value in zip(xs, ys, strict=True))


def _marks(run: int, steps: Sequence[float], x: Scale) -> str:
    """A cross for each step that was not applied."""
    bottom = HEIGHT - BOTTOM - 4
    crosses = "".join(f"M{_place(x(step) - 3)} {bottom - 3}l6 6m0 -6l-6 6" for step in steps)
    return (
        f'<path class="bad run{run}" data-run="{run}" d="{crosses}"><title>steps that were not applied</title></path>'
    )


def _place(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
