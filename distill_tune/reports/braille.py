"""Curves in a terminal: braille characters, of two by four dots each."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from rich.text import Text

_BLANK = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by the dot's row and column
_ACROSS, _DOWN = 2, 4  # dots of a character
_MARK = "•"
_LEAST_WIDTH, _LEAST_HEIGHT = 8, 1  # characters of a curve's own


@dataclasses.dataclass(frozen=True)
class Curve:
    """
    Attributes:
        steps, values: ``[n]`` float64; values that are not finite are left out.
        style: as rich names it.
        is_marked: each value is a mark; else all of a column of dots are one, their mean, and a line joins them.
    """

    steps: np.ndarray
    values: np.ndarray
    style: str = ""
    is_marked: bool = False

    def finite(self) -> "Curve":
        kept = np.isfinite(self.values)
        return dataclasses.replace(self, steps=self.steps[kept], values=self.values[kept])


def plot(title: Text, curves: Sequence[Curve], width: int, height: int) -> list[Text]:
    """So many lines of so many columns: the title, the curves beside the range of their values, the range of steps.

    Curves that come later lie above the others. What has no room is the title alone.
    """
    curves = [curve for given in curves if len((curve := given.finite()).steps)]
    title = title.copy()
    title.truncate(width, overflow="ellipsis")
    rows = height - 2
    margin, drawn = _drawn_beside_labels(curves, width) if curves else (width, [])
    columns = width - margin - 1
    if columns < _LEAST_WIDTH or rows < _LEAST_HEIGHT:
        return [title, *(Text() for _ in range(height - 1))]

    bottom, top = _range(drawn)
    canvas = _Canvas(columns, rows)
    for curve, (dots, values) in zip(curves, drawn, strict=True):
        heights = (values - bottom) / (top - bottom) if top > bottom else np.full(len(values), 0.5)
        draw = canvas.mark if curve.is_marked else canvas.join
        draw(dots, heights, curve.style)
    labels = [_number(top), *[""] * (rows - 2), _number(bottom)][:rows]
    lines = [
        Text.assemble((f"{label:>{margin}}│", "dim"), line) for label, line in zip(labels, canvas.lines(), strict=True)
    ]
    first, last = (f"{step:.0f}" for step in _steps(curves))
    axis = f"{first}{last if last != first else '':>{max(columns - len(first), 1)}}"
    return [title, *lines, Text(f"{'':>{margin + 1}}{axis}"[:width], style="dim")]


def _drawn_beside_labels(curves: Sequence[Curve], width: int) -> tuple[int, list[tuple[np.ndarray, np.ndarray]]]:
    """How many columns the labels of the range take, and each curve's columns of dots with the value at each.

    The fewer columns are left, the more values are one dot, and the narrower is their range.
    """
    margin = 0
    while True:
        drawn = [_drawn(curve, _steps(curves), max(width - margin - 1, 1)) for curve in curves]
        if (needed := max(len(_number(value)) for value in _range(drawn))) <= margin:
            return margin, drawn
        margin = needed


def _steps(curves: Sequence[Curve]) -> tuple[float, float]:
    """The first and the last."""
    return min(curve.steps.min() for curve in curves), max(curve.steps.max() for curve in curves)


def _range(drawn: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    return min(values.min() for _, values in drawn), max(values.max() for _, values in drawn)


def _drawn(curve: Curve, steps: tuple[float, float], columns: int) -> tuple[np.ndarray, np.ndarray]:
    span = max(steps[1] - steps[0], 1)
    dots = np.rint((curve.steps - steps[0]) / span * (columns * _ACROSS - 1)).astype(int)
    if curve.is_marked:
        return dots, curve.values
    counts, sums = np.bincount(dots), np.bincount(dots, weights=curve.values)
    (there,) = np.nonzero(counts)
    return there, sums[there] / counts[there]


class _Canvas:
    """Dots, and the style of the curve that came last to each character."""

    def __init__(self, columns: int, rows: int) -> None:
        self._bits = [[0] * columns for _ in range(rows)]
        self._marks: dict[tuple[int, int], str] = {}
        self._styles: dict[tuple[int, int], str] = {}
        self._last = rows * _DOWN - 1

    def _row(self, height: float) -> int:
        """Of dots, from above."""
        return round((1 - height) * self._last)

    def join(self, dots: np.ndarray, heights: np.ndarray, style: str) -> None:
        before: tuple[int, int] | None = None
        for dot, height in zip(dots.tolist(), heights.tolist(), strict=True):
            row = self._row(height)
            x, y = before or (dot, row)
            for column in range(x, dot + 1):
                # Where the line stands half a column before and half a column after.
                start, end = (
                    y + (row - y) * min(max((column + half - x) / max(dot - x, 1), 0), 1) for half in (-0.5, 0.5)
                )
                for at in range(math.floor(min(start, end) + 0.5), math.floor(max(start, end) + 0.5) + 1):
                    self._dot(column, at, style)
            before = (dot, row)

    def mark(self, dots: np.ndarray, heights: np.ndarray, style: str) -> None:
        for dot, height in zip(dots.tolist(), heights.tolist(), strict=True):
            place = (self._row(height) // _DOWN, dot // _ACROSS)
            self._marks[place], self._styles[place] = _MARK, style

    def _dot(self, column: int, row: int, style: str) -> None:
        place = (row // _DOWN, column // _ACROSS)
        self._bits[place[0]][place[1]] |= _BITS[row % _DOWN][column % _ACROSS]
        self._styles[place] = style

    def lines(self) -> list[Text]:
        lines = []
        for row, bits in enumerate(self._bits):
            line = Text()
            for column, dots in enumerate(bits):
                place = (row, column)
                line.append(self._marks.get(place) or (chr(_BLANK + dots) if dots else " "), self._styles.get(place))
            lines.append(line)
        return lines


def _number(value: float) -> str:
    """With three digits that tell: ``4.23``, ``0.0123``, ``1.2e+04``."""
    return f"{value:.3g}"
