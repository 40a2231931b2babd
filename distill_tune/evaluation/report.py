"""The comparison as a table: for the terminal and for a file."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from distill_tune.counts import counted
from distill_tune.evaluation.compare import Comparison, share_of_gap_closed
from distill_tune.sizes import binary

_FEW_ROWS = 100
_NOT_MEASURED = "same"  # as of the model above with as many parameters
_HEADINGS = ("model", "para-\nmeters", "perplexity", "agreement", "KL to\nteacher", "tokens/s", "peak\nmemory")


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for index, heading in enumerate(_HEADINGS):
        if index == 0:
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for comparison in comparisons:
        table.add_row(*_cells(comparison))
    return table


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    headings = [heading.replace("-\n", "").replace("\n", " ") for heading in _HEADINGS]
    rows = [headings, ("---", *["---:"] * (len(_HEADINGS) - 1)), *map(_cells, comparisons)]
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
        f"{comparison.agreement:.3f}",
        f"{comparison.kl:.3f}",
        _NOT_MEASURED if comparison.tokens_per_second is None else f"{comparison.tokens_per_second:,.0f}",
        _NOT_MEASURED if comparison.peak_memory_bytes is None else binary(comparison.peak_memory_bytes),
    )
