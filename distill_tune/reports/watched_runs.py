"""What `distill-tune watch` shows of runs: a screen of a terminal, or plain lines for a log."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from distill_tune.reports.braille import Curve, plot
from distill_tune.reports.followed_run import FollowedRun
from distill_tune.reports.run_files import is_figure
from distill_tune.shown_metrics import duration, shown_metrics

_PLOTTED = ("loss", "kd_loss", "ce_loss")
_STATES = {"running": "green", "finished": "cyan", "stopped": "yellow"}
_COLOURS = ("cyan", "magenta", "green", "blue")  # of runs whose curves lie in one plot
_VALIDATION, _ALARM = "yellow", "bold red"
_GAP = "  "  # between plots, and between what stands in a line
_LEAST_PLOT = 24  # columns
_LEAST_PLOT_LINES = 4
_WIDE = 4  # columns of a plot for each of its lines
_BAR = 24  # columns
_FEWEST_RUNS = 3  # of which there is a line, however low the terminal
_LEAST_NAME = 8  # columns
# Of the parts of a line, where it is too narrow for all.
_FIRST_TO_GO = ("memory", "lr", "rollouts", "speed", "ce", "validation", "kd", "loss", "left")


def plain(run: FollowedRun) -> str:
    """Some lines, without colours or plots."""
    lines = [f"{run.files.name}: {', '.join([run.state, *_progress(run).values()])}"]
    if run.last:
        lines.append(f"  {_GAP.join(shown_metrics(run.last).values())}")
    if validation := _validation(run):
        lines.append(f"  {validation}")
    lines += [f"  alarm: {alarm}" for alarm in run.alarms]
    return "\n".join(lines)


def screen(runs: Sequence[FollowedRun], width: int, height: int) -> list[Text]:
    """At most so many lines of so many columns: how far runs are, what is wrong, and their curves."""
    if len(runs) == 1:
        lines = _details(runs[0], width)
        told = [line for alarm in runs[0].alarms for line in textwrap.wrap(alarm, width)]
    else:
        lines = _table(runs, width, max(height // 3, _FEWEST_RUNS))
        told = [f"{run.files.name}: {alarm}" for run in runs for alarm in run.alarms][: height // 4]
    for text in told:
        lines.append(Text(text, style=_ALARM))
        lines[-1].truncate(width, overflow="ellipsis")
    return [*lines, *_plots(runs[: len(_COLOURS)], width, height - len(lines))][:height]


def _progress(run: FollowedRun) -> dict[str, str]:
    """How far a run is, and what comes of it."""
    if not run.last:
        parts = {"step": "no step yet"}
    else:
        total = run.files.total_steps
        parts = {"step": f"step {run.last['step']}" + (f"/{total}" if total else "")}
    if run.seconds_left is not None:
        parts["left"] = f"{duration(run.seconds_left)} left"
    if run.state != "finished":
        parts["silent"] = f"{'last step' if run.last else 'begun'} {duration(run.seconds_silent)} ago"
    return parts


def _validation(run: FollowedRun) -> str:
    """The last one's losses, without a part that has no weight; empty before the first."""
    found = [
        f"{name.removesuffix('_loss')} {_loss(value)}"
        for name in _PLOTTED
        if (value := run.validated.get(f"val_{name}", 0)) != 0
    ]
    return f"validation at step {run.validated['step']}: {_GAP.join(found)}" if found else ""


def _loss(value: Any) -> str:
    """What is not finite is null in a file."""
    return f"{value if is_figure(value) else math.nan:.3f}"


def _details(run: FollowedRun, width: int) -> list[Text]:
    """Of one run, over several lines."""
    head = Text(_end_of(run.files.name, width - len(run.state) - len(_GAP)), style="bold")
    head.append(_GAP).append(run.state, _STATES[run.state])
    facts = run.files.facts
    processes = f"{facts['processes']} x " if facts.get("processes", 1) != 1 else ""
    of_run = [str(facts["recipe"])] if "recipe" in facts else []
    of_run += [f"{processes}{facts['device']}"] if "device" in facts else []
    lines = _flowing([head, *of_run], width)
    progress = _progress(run)
    parts: list[str | Text] = [progress.pop("step")]
    if run.last and (total := run.files.total_steps):
        share = min(run.last["step"] / total, 1.0)
        done = round(share * _BAR)
        parts.append(Text.assemble(("━" * done, _STATES[run.state]), ("━" * (_BAR - done), "dim"), f" {share:.0%}"))
    lines += _flowing([*parts, *progress.values()], width)
    figures = list(shown_metrics(run.last).values())
    if (norm := run.last.get("grad_norm")) is not None:
        figures.append(f"grad norm {norm:.2f}")
    lines += _flowing(figures, width)
    if validation := _validation(run):
        lines += _flowing([Text(validation, style=_VALIDATION)], width)
    return lines


def _table(runs: Sequence[FollowedRun], width: int, most: int) -> list[Text]:
    """A line a run, with as many of its parts as fit, one below another."""
    shown = runs if len(runs) <= most else runs[: most - 1]
    rows = [_parts(run) for run in shown]
    names = list(dict.fromkeys(name for row in rows for name, part in row.items() if part))
    widths = {name: max(cell_len(row.get(name, "")) for row in rows) for name in names}
    of_name = widths.pop("name")
    for name in _FIRST_TO_GO:
        if sum(len(_GAP) + taken for taken in widths.values()) + min(of_name, _LEAST_NAME * 2) > width:
            widths.pop(name, None)
    room = width - sum(len(_GAP) + taken for taken in widths.values())
    of_name = min(of_name, max(room, _LEAST_NAME))
    lines = []
    for number, (run, row) in enumerate(zip(shown, rows, strict=True)):
        line = Text(_end_of(row["name"], of_name), style=_COLOURS[number] if number < len(_COLOURS) else "")
        line.align("left", of_name)
        for name, taken in widths.items():
            cell = Text(row.get(name, ""), style=_STATES[run.state] if name == "state" else "default")
            cell.align("left", taken)
            line = Text.assemble(line, _GAP, cell)
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    if len(runs) > len(shown):
        rest = Text(f"and {len(runs) - len(shown)} more, which began earlier", style="dim")
        rest.truncate(width, overflow="ellipsis")
        lines.append(rest)
    return lines


def _parts(run: FollowedRun) -> Mapping[str, str]:
    progress = _progress(run)
    parts = {"name": run.files.name, "state": run.state, "step": progress["step"], "left": progress.get("left", "")}
    parts |= shown_metrics(run.last)
    return parts | ({"validation": f"val {_loss(run.validated['val_loss'])}"} if run.validated else {})


def _plots(runs: Sequence[FollowedRun], width: int, height: int) -> list[Text]:
    """Beside each other or one below another, whatever leaves more of them; what has no room is left out."""
    names = [name for name in _PLOTTED if any(_has(run, name) for run in runs)]
    if names == ["loss", "ce_loss"]:  # which are the same, without a teacher
        names = ["loss"]
    if not names:
        return []
    beside = (width + len(_GAP)) // len(names) - len(_GAP)
    if beside >= _LEAST_PLOT and min(beside / _WIDE, height) > min(width / _WIDE, height // len(names)):
        blocks = [_plot(name, runs, beside, height) for name in names] if height >= _LEAST_PLOT_LINES else []
        return [Text(_GAP).join(parts) for parts in zip(*blocks, strict=True)]
    names = names[: max(height // _LEAST_PLOT_LINES, 0)]
    return [line for name in names for line in _plot(name, runs, width, height // len(names))]


def _plot(name: str, runs: Sequence[FollowedRun], width: int, height: int) -> list[Text]:
    of_runs = list(zip(runs, _COLOURS, strict=False))
    curves = [_curve(run, name, colour) for run, colour in of_runs]
    marks = [
        _curve(run, f"val_{name}", colour if len(runs) > 1 else _VALIDATION, is_marked=True) for run, colour in of_runs
    ]
    title = Text(name, style="bold")
    if any(len(curve.steps) for curve in marks):
        title.append(" • validation", "default")
    lines = plot(title, curves + marks, width, height)
    for line in lines:
        line.truncate(width, pad=True)
    return lines


def _curve(run: FollowedRun, name: str, colour: str, is_marked: bool = False) -> Curve:
    steps, values = map(np.array, run.column(name) if _has(run, name) else ((), ()))
    return Curve(steps, values, colour, is_marked)


def _has(run: FollowedRun, name: str) -> bool:
    """A part of the loss that has no weight is 0 at every step."""
    return any(run.column(name)[1])


def _flowing(parts: Iterable[str | Text], width: int) -> list[Text]:
    """Parts one after another, a new line begun where one is full."""
    lines: list[Text] = []
    for part in parts:
        part = part if isinstance(part, Text) else Text(part)
        if lines and lines[-1].cell_len + len(_GAP) + part.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], _GAP, part)
        else:
            part.truncate(width, overflow="ellipsis")
            lines.append(part)
    return lines


def _end_of(name: str, width: int) -> str:
    """A name, or as much of its end as there is room for."""
    while cell_len(name) > max(width, 1):
        name = "…" + name.lstrip("…")[1:]
    return name
