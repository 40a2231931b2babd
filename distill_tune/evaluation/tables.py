"""What an evaluation found, for the terminal and as Markdown: from the content of its results.json alone."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from distill_tune.counts import counted
from distill_tune.sizes import binary

Results = Mapping[str, Any]

_NAME = 16  # columns for a model's name, at least; a longer one goes on in the next line
_UNBOUNDED = 10_000
_MOST_PARTS = 3  # of a table; where a terminal is narrower still, each of its rows is a list
_MOST_PAIRS = 8  # in a terminal
_MISSING = "-"
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class Cell:
    """A figure.

    Attributes:
        bounds: within which it lies.
        reach: half of what is between them.
    """

    text: str
    bounds: tuple[str, str] | None = None
    reach: str = ""

    def with_bounds(self) -> str:
        return self.text + (f" ({self.bounds[0]} to {self.bounds[1]})" if self.bounds else "")


@dataclasses.dataclass(frozen=True)
class Block:
    """A table.

    Attributes:
        names: how many of the first columns say what a row is of.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 1


def results_text(results: Results, width: int | None = None) -> str:
    """As wide as the terminal: columns that have no room go on below, then each row is a list.

    Args:
        width: in place of the terminal's. Where there is none, as in a pipe or a file, lines are as long as they are,
            unless ``COLUMNS`` says otherwise.
    """
    console = Console(width=width)
    if width is None and not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=_UNBOUNDED)
    with console.capture() as printed:
        for block in blocks(results):
            console.print(Text(block.title, style="bold"), _shown(block, console), sep="\n")
        for sentence in _few_sentences(results):
            console.print(Text(sentence))
    return "\n".join(line.rstrip() for line in printed.get().split("\n"))  # tables pad their lines


def results_markdown(results: Results) -> str:
    """The tables with their intervals, and below them the sentences."""
    parts = []
    for block in blocks(results):
        rows = [[in_a_line(heading) for heading in block.headings]]
        rows.append(["---"] * block.names + ["---:"] * (len(block.headings) - block.names))
        rows += [[_escaped(cell.with_bounds()) for cell in row] for row in block.rows]
        lines = (f"| {' | '.join(row)} |" for row in rows)
        parts.append(f"**{block.title}**\n\n" + "\n".join(lines) + "\n")
    parts.append("".join(f"- {_escaped(sentence)}\n" for sentence in sentences(results)))
    return "\n".join(parts)


def sentences(results: Results) -> list[str]:
    """What was scored, how much of the gap to the teacher is closed, and the pairs in words."""
    found = [results["data"]["scored"], gap_sentence(results), _other_tokens(results), _no_room(results)]
    return [sentence for sentence in found if sentence] + [_told(pair["words"]) for pair in results["pairs"]]


def _few_sentences(results: Results) -> list[str]:
    """As :func:`sentences`; of many pairs those by the first measure, which a terminal has room for."""
    every, pairs = sentences(results), results["pairs"]
    if len(pairs) <= _MOST_PAIRS:
        return every
    first = [_told(pair["words"]) for pair in pairs if pair["measure"] == pairs[0]["measure"]]
    others = len(pairs) - len(first)
    return [*every[: -len(pairs)], *first, f"{others} more comparisons, by other measures, are in the written table."]


def _told(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words.startswith(("not ", "no ")) else f"{words}."


def gap_sentence(results: Results) -> str:
    """What share of the gap between base student and teacher, in bits per byte, each student closed; else nothing."""
    teacher, base, models = results["teacher"], results["base"], results["models"]
    if teacher is None or base is None:
        return ""
    of_each = {label: _figure(model, "supervised.bits_per_byte") for label, model in models.items()}
    bits = {label: of for label, of in of_each.items() if of is not None}  # which there are none of without text
    if teacher not in bits or base not in bits:
        return ""
    others = [label for label in bits if label not in (teacher, base)]
    if bits[base] <= bits[teacher]:
        return f"{base} has no more bits per byte than {teacher}: there is no gap to close."
    gap = bits[base] - bits[teacher]
    shares = [f"{label} {(bits[base] - bits[label]) / gap:.0%}" for label in others]
    if not shares:
        return ""
    return f"Of the gap between {base} and {teacher} in bits per byte are closed: {', '.join(shares)}."


def _other_tokens(results: Results) -> str:
    """That models with a tokenizer other than the teacher's have nothing that is held against it; else nothing."""
    teacher = results["teacher"]
    others = [label for label, model in results["models"].items() if label != teacher and not model.get("to_teacher")]
    if teacher is None or not others:
        return ""
    return (
        f"Not held against {teacher} token by token, since the tokenizers differ: {', '.join(others)}. Bits per byte "
        "compare such models; perplexity does not."
    )


def _no_room(results: Results) -> str:
    """To which documents models could not answer, so that no model's answers to them count; else nothing."""
    numbers = {label: _figure(model, "answers.no_room") for label, model in results["models"].items()}
    told = [f"{label} behind {counted(number, 'prompt')}" for label, number in numbers.items() if number]
    if not told:
        return ""
    return (
        f"No room for an answer has {', '.join(told)}: answers are compared on the documents to which all models have "
        "one."
    )


# ---- Columns


@dataclasses.dataclass(frozen=True)
class _Column:
    heading: str
    path: str
    told: Callable[[Any], str]


def _number(value: float) -> str:
    """Three decimals; of less than a hundredth, three digits; what rounding leaves is nothing."""
    if abs(value) < _ROUNDING:
        return f"{0:.3f}"
    if not math.isfinite(value) or abs(value) >= 0.01:
        return f"{value:.3f}"
    return f"{value:.{min(6, 2 - math.floor(math.log10(abs(value))))}f}"


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _millions(value: float) -> str:
    return f"{value / 1e6:,.2f} M"


_QUALITY = (
    _Column("perplex-\nity", "supervised.perplexity", _perplexity),
    _Column("bits per\nbyte", "supervised.bits_per_byte", _number),
    _Column("KL to\nteacher", "to_teacher.forward_kl.mean", _number),
    _Column("agree-\nment", "to_teacher.agreement", _percent),
    _Column("exact\nmatch", "answers.exact_match", _percent),
    _Column("ROUGE-L", "answers.rouge_l", _percent),
)
_MODELS = (
    _Column("para-\nmeters", "parameters", _millions),
    *_QUALITY,
    _Column("ECE", "calibration.ece", _percent),
    _Column("file", "file_bytes", binary),
    _Column("peak\nmemory", "peak_memory_bytes", binary),
)
_ALL_TOKENS = (
    _Column("perplex-\nity", "all.perplexity", _perplexity),
    _Column("bits per\nbyte", "all.bits_per_byte", _number),
)
_TO_TEACHER = (
    _Column("KL\nmedian", "to_teacher.forward_kl.median", _number),
    _Column("99 %", "to_teacher.forward_kl.p99", _number),
    _Column("99.9 %", "to_teacher.forward_kl.p999", _number),
    _Column("largest", "to_teacher.forward_kl.max", _number),
    _Column("reverse\nKL", "to_teacher.reverse_kl.mean", _number),
    _Column("in the\nfirst 5", "to_teacher.agreement_top5", _percent),
    _Column("total\nvariation", "to_teacher.total_variation", _number),
)
_ANSWERS = (
    _Column("answers", "answers.documents", _count),
    _Column("tokens in\nthe mean", "answers.mean_tokens", lambda value: f"{value:,.1f}"),
    _Column("ended by\nthemselves", "answers.finished", _percent),
)


def blocks(results: Results) -> Iterator[Block]:
    """The tables."""
    models, teacher = results["models"], results["teacher"]
    data = results["data"]
    about = f"{data['name']}, {counted(data['documents'], 'document')}"
    yield from _block(f"{about}: what is supervised", models, (*_MODELS, *_speed_columns(models)))
    if any(model["all"]["tokens"] != model["supervised"]["tokens"] for model in models.values()):
        yield from _block("All tokens", models, _ALL_TOKENS)
    yield from _block(
        f"Distance to {teacher}, nats a token",
        {label: model for label, model in models.items() if label != teacher},
        _TO_TEACHER,
    )
    yield from _block("Generated answers", models, _ANSWERS)
    yield from _category_block(models)
    yield from _task_block(results.get("tasks") or {})


def _speed_columns(models: Mapping[str, Any]) -> list[_Column]:
    speeds = [model["speed"] for model in models.values() if model.get("speed")]
    found = []
    for kind in ("prefill", "decode"):
        sizes = {size for speed in speeds for size in speed.get(f"{kind}_tokens_per_second", {})}
        for size in sorted(sizes, key=int):
            path = f"speed.{kind}_tokens_per_second.{size}"
            found.append(_Column(f"{kind}\ntokens/s\nof {size}", path, _count))
    return found


def _block(title: str, models: Mapping[str, Any], columns: Sequence[_Column]) -> Iterator[Block]:
    return _block_of(title, ("model",), [((label,), model) for label, model in models.items()], columns)


def _block_of(
    title: str,
    names: Sequence[str],
    rows: Sequence[tuple[Sequence[str], Mapping[str, Any]]],
    columns: Sequence[_Column],
) -> Iterator[Block]:
    """None where no row has any of these figures; without the columns that none has.

    Args:
        names: headings of what says what a row is of.
        rows: what it is of, and its figures.
    """
    there = [column for column in columns if any(_figure(figures, column.path) is not None for _, figures in rows)]
    if there:
        cells = tuple((*map(Cell, of), *(_cell(figures, column) for column in there)) for of, figures in rows)
        yield Block(title, (*names, *(column.heading for column in there)), cells, names=len(names))


def _category_block(models: Mapping[str, Any]) -> Iterator[Block]:
    """Where there are several."""
    rows = [
        ((category, label), model["categories"][category])
        for category in sorted({name for model in models.values() for name in model.get("categories") or {}})
        for label, model in models.items()
        if category in (model.get("categories") or {})
    ]
    if len({category for (category, _), _ in rows}) > 1:
        columns = (_Column("docu-\nments", "documents", _count), *_QUALITY)
        yield from _block_of("By category", ("category", "model"), rows, columns)


def _task_block(tasks: Mapping[str, Any]) -> Iterator[Block]:
    """A row for each task, model and figure, as lm-eval names them."""
    rows = [
        (Cell(task), Cell(label), Cell(name), _around(value, figures.get(f"{name}_stderr")))
        for task, models in tasks.items()
        for label, figures in models.items()
        for name, value in figures.items()
        if name != "documents" and not name.endswith("_stderr")
    ]
    if rows:
        yield Block("Tasks, by lm-eval", ("task", "model", "measure", "value"), tuple(rows), names=3)


def _around(value: float, deviation: float | None) -> Cell:
    """
    Args:
        deviation: of the value, by lm-eval, which has none of some measures.
    """
    if not isinstance(deviation, int | float) or not math.isfinite(deviation):
        return Cell(_number(value))
    return _bounded(_number(value), (value - 1.96 * deviation, value + 1.96 * deviation), _number)


def _figure(model: Mapping[str, Any], path: str) -> Any:
    """None where it is not there."""
    found: Any = model
    for key in path.split("."):
        if not isinstance(found, Mapping) or found.get(key) is None:
            return None
        found = found[key]
    return found


def _cell(model: Mapping[str, Any], column: _Column) -> Cell:
    value, bounds = _figure(model, column.path), (model.get("intervals") or {}).get(column.path)
    if value is None:
        return Cell(_MISSING)
    return _bounded(column.told(value), bounds, column.told)


def _bounded(text: str, bounds: Sequence[float] | None, told: Callable[[float], str]) -> Cell:
    if bounds is None:
        return Cell(text)
    low, high = bounds
    return Cell(text, (told(low), told(high)), told((high - low) / 2))


# ---- In the terminal


def _shown(block: Block, console: Console) -> RenderableType:
    unbounded = console.options.update(width=_UNBOUNDED)
    in_lines = dataclasses.replace(block, headings=tuple(map(in_a_line, block.headings)))
    whole = _table(in_lines, range(block.names, len(block.headings)))
    if Measurement.get(console, unbounded, whole).maximum <= console.width:
        return whole
    parts: list[list[int]] = [[]]
    for column in range(block.names, len(block.headings)):
        table = _table(block, [*parts[-1], column], folds=True)
        if Measurement.get(console, unbounded, table).maximum > console.width:
            if not parts[-1] or len(parts) == _MOST_PARTS:
                return _list(block)
            parts.append([])
        parts[-1].append(column)
    return Group(*(_table(block, part) for part in parts))


def _table(block: Block, columns: Sequence[int], folds: bool = False) -> Table:
    """
    Args:
        folds: names as short as they may become, to find out how narrow it can be.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    for index, heading in enumerate(block.headings[: block.names]):
        longest = max(len(row[index].text) for row in block.rows)
        table.add_column(heading, overflow="fold", min_width=min(longest, _NAME))
    for index in columns:
        table.add_column(block.headings[index], justify="right", no_wrap=True)
    for row in block.rows:
        names = [cell.text[:_NAME] if folds else cell.text for cell in row[: block.names]]
        table.add_row(*map(Text, names), *(_with_reach(row[index]) for index in columns))
    return table


def _with_reach(cell: Cell) -> Text:
    """Below the figure how far it may be off."""
    text = Text(cell.text)
    if cell.reach:
        text.append(f"\n±{cell.reach}", style="dim")
    return text


def _list(block: Block) -> RenderableType:
    parts: list[RenderableType] = []
    for row in block.rows:
        table = Table.grid(padding=(0, 1))
        for _ in range(2):
            table.add_column(overflow="fold")
        for heading, cell in zip(block.headings[block.names :], row[block.names :], strict=True):
            table.add_row(f"  {in_a_line(heading)}", _with_reach(cell))
        parts += [Text(", ".join(cell.text for cell in row[: block.names]), overflow="fold"), table]
    return Group(*parts)


def in_a_line(heading: str) -> str:
    """A block's heading, which has several lines."""
    return heading.replace("-\n", "").replace("\n", " ")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
