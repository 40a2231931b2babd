"""The comparison as a table: for the terminal and for a file."""

import dataclasses
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from distill_tune.counts import counted
from distill_tune.evaluation.compare import Comparison, share_of_gap_closed
from distill_tune.sizes import binary

_FEW_ROWS = 100
_NOT_MEASURED = "same"  # as of the model above with as many parameters
_HEADINGS = ("model", "para-\nmeters", "perplexity", "agreement", "KL to\nteacher", "tokens/s", "peak\nmemory")
_CAN_GO = 2  # of the last columns, where a terminal is narrow
_NAME = 16  # columns for a model's name, at least; a longer one goes on in the next line
_UNBOUNDED = 10_000


def comparison_table(comparisons: Sequence[Comparison], console: Console) -> RenderableType:
    """As wide as the console allows: without memory, then without speed, then a list for each model."""
    folded = [dataclasses.replace(comparison, name=comparison.name[:_NAME]) for comparison in comparisons]
    unbounded = console.options.update(width=_UNBOUNDED)
    for num_columns in range(len(_HEADINGS), len(_HEADINGS) - _CAN_GO - 1, -1):
        if Measurement.get(console, unbounded, _table(folded, num_columns)).minimum <= console.width:
            return _table(comparisons, num_columns)
    return Group(*(part for comparison in comparisons for part in _list(comparison)))


def _table(comparisons: Sequence[Comparison], num_columns: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for index, heading in enumerate(_HEADINGS[:num_columns]):
        if index == 0:
            longest = max(len(comparison.name) for comparison in comparisons)
            table.add_column(heading, overflow="fold", min_width=min(longest, _NAME))
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        table.add_row(*_cells(comparison)[:num_columns])
    return table


def _list(comparison: Comparison) -> tuple[Text, Table]:
    name, *values = _cells(comparison)
    table = Table.grid(padding=(0, 1))
    for heading, value in zip(_in_a_line(_HEADINGS[1:]), values, strict=True):
        table.add_row(f"  {heading}", value)
    return Text(name, overflow="fold"), table


def _in_a_line(headings: Sequence[str]) -> list[str]:
    return [heading.replace("-\n", "").replace("\n", " ") for heading in headings]


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    rows = [_in_a_line(_HEADINGS), ("---", *["---:"] * (len(_HEADINGS) - 1)), *map(_cells, comparisons)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def gap_sentence(teacher: Comparison, base: Comparison, students: Sequence[Comparison]) -> str:
    """What share of the gap between base student and teacher, in log-perplexity, each student closed."""
    if base.perplexity <= teacher.perplexity:
        return f"The {base.name} has no more perplexity than the {teacher.name}: there is no gap to close."
    shares = [
        f"{student.name} {share_of_gap_closed(base.perplexity, teacher.perplexity, student.perplexity):.0%}"
        for student in students
    ]
    return f"Of the gap between {base.name} and {teacher.name} in log-perplexity are closed: {', '.join(shares)}."


def other_tokens(comparisons: Sequence[Comparison]) -> str:
    """What is left out of a teacher with another tokenizer, and what its perplexity is; else nothing."""
    if all(comparison.kl is not None for comparison in comparisons):
        return ""
    return (
        "The teacher has another tokenizer: agreement and KL are left out, and its perplexity is that of the same "
        "answers, for each token that the student has for them."
    )


def few_rows(num_rows: int) -> str:
    """A note where there are too few rows for what is told in percent; else nothing."""
    if num_rows >= _FEW_ROWS:
        return ""
    return f"On {counted(num_rows, 'row')} alone: others would give percentages that are some points higher or lower."


def _cells(comparison: Comparison) -> tuple[str, ...]:
    return (
        comparison.name,
        f"{comparison.parameters / 1e6:.2f} M",
        f"{comparison.perplexity:.1f}",
        *("-" if value is None else f"{value:.3f}" for value in (comparison.agreement, comparison.kl)),
        _NOT_MEASURED if comparison.tokens_per_second is None else f"{comparison.tokens_per_second:,.0f}",
        _NOT_MEASURED if comparison.peak_memory_bytes is None else binary(comparison.peak_memory_bytes),
    )
