"""Curves as dots: where each value lies, whatever the size of the plot."""

import numpy as np
import pytest
from rich.text import Text

from distill_tune.reports.braille import Curve, plot


def curve(values, style="", is_marked=False):
    return Curve(np.arange(1.0, len(values) + 1), np.array(values, dtype=float), style, is_marked)


def drawn(*curves, width=40, height=10):
    return [line.plain for line in plot(Text("loss"), curves, width, height)]


def dots(lines):
    """Row, from above, and column of every dot beside the labels."""
    return {
        (4 * row + down, 2 * column + across)
        for row, line in enumerate(lines)
        for column, character in enumerate(line.partition("│")[2])
        if character != " "
        for down, across, bit in [
            (0, 0, 1),
            (1, 0, 2),
            (2, 0, 4),
            (3, 0, 64),
            (0, 1, 8),
            (1, 1, 16),
            (2, 1, 32),
            (3, 1, 128),
        ]
        if (ord(character) - 0x2800) & bit
    }


def test_a_value_for_each_column_lies_at_its_height():
    width, rows = 20, 4
    columns = 2 * (width - len("31│"))
    values = [(7 * column) % 16 for column in range(columns - 2)] + [0, 15]
    *lines, axis = drawn(curve([value + 16 for value in values]), width=width, height=rows + 2)[1:]
    assert {(15 - value, column) for column, value in enumerate(values)} <= dots(lines)
    assert [lines[0][:3], lines[-1][:3]] == ["31│", "16│"]
    assert axis == "   1              34"


def test_steps_between_which_nothing_lies_are_joined():
    *lines, _ = drawn(curve([3, 1]), width=12, height=5)[1:]
    assert {column for _, column in dots(lines)} == set(range(20))
    assert dots(lines) >= {(0, 0), (11, 19)}


def test_of_many_values_the_mean_is_shown_and_the_range_is_that_of_means():
    values = np.random.default_rng(0).normal(size=4000)
    lines = drawn(curve(values), width=30, height=8)
    columns = 30 - lines[1].index("│") - 1
    place = np.rint((np.arange(4000)) / 3999 * (2 * columns - 1)).astype(int)
    means = [values[place == at].mean() for at in range(2 * columns)]
    assert lines[1].partition("│")[0].strip() == f"{max(means):.3g}"
    assert lines[-2].partition("│")[0].strip() == f"{min(means):.3g}"


def test_what_is_not_finite_is_left_out_and_marks_lie_above_lines():
    lines = drawn(curve([np.nan, 1, 2, np.inf]), curve([2, np.nan, np.nan, 1.5], is_marked=True))
    assert lines[1].startswith("2│•") and sum(line.count("•") for line in lines) == 2
    assert lines[-1].split() == ["1", "4"]


def test_a_single_or_constant_value_lies_in_the_middle():
    assert dots(drawn(curve([0.5]), height=5)[1:-1]) == {(6, 0)}
    assert {row for row, _ in dots(drawn(curve([0.5] * 9), height=5)[1:-1])} == {6}


@pytest.mark.parametrize("width", [1, 7, 12, 25, 38, 80, 131])
@pytest.mark.parametrize("height", [1, 2, 3, 9])
def test_a_plot_has_the_size_that_is_asked_for_whatever_the_values(width, height):
    random = np.random.default_rng(width)
    for values in (
        [],
        [1],
        random.normal(size=777) * 1e-6,
        random.normal(size=50) * 1e9,
        [*random.normal(size=60), 1e30],
    ):
        lines = plot(Text("a long title of a plot"), [curve(values)], width, height)
        assert len(lines) == height
        assert all(line.cell_len <= width for line in lines)
