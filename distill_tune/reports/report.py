"""What a report has of some runs, whatever it is written as: findings, tables, charts, answers and texts."""

import collections
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import yaml

import distill_tune
from distill_tune.reports.configs import differing
from distill_tune.reports.curves import Chart, charts_of
from distill_tune.reports.evaluated import Answers, MarkedText, marked_rollouts, marked_texts, shown_answers
from distill_tune.reports.findings import Finding, findings_of
from distill_tune.reports.numbers import NOTHING, duration, short, tidy
from distill_tune.reports.run_files import RunFiles, is_figure
from distill_tune.sizes import binary

MOST_DRAWN = 16  # runs whose curves a page has room for
_LAST = 20  # steps of which a mean is given: one alone says little
_ANSWERS, _TEXTS = 6, 3  # documents, of all runs together
_MOST_CONFIGS = 12  # that are written out
_ACROSS = 4  # runs that have a column each
_RESULTS_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Cell:
    """
    Attributes:
        below: what is said of the figure: its bounds.
    """

    text: str
    below: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """
    Attributes:
        names: how many of the first columns say what a row is of; the others are figures.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Of one run.

    Attributes:
        sentences: below the tables: what was scored, and the pairs in words.
    """

    tables: Sequence[Table]
    sentences: Sequence[str]
    answers: Sequence[Answers]
    texts: Sequence[Sequence[MarkedText]]


@dataclasses.dataclass(frozen=True)
class Report:
    """
    Attributes:
        command: by which a single run was started.
        findings: by the name of the run.
        evaluations, rollouts, configs: by the name of the run, of those that have them.
        made: the tables that say how the runs came about.
    """

    title: str
    subtitle: str
    command: str | None
    runs: Sequence[RunFiles]
    findings: Mapping[str, Sequence[Finding]]
    summary: Table
    charts: Sequence[Chart]
    evaluations: Mapping[str, Evaluation]
    rollouts: Mapping[str, Sequence[MarkedText]]
    made: Sequence[Table]
    configs: Mapping[str, str]
    footer: str


def report_of(runs: Sequence[RunFiles]) -> Report:
    """Of at least one run."""
    evaluated = [run for run in runs if run.evaluation]
    share = max(1, len(evaluated))
    evaluations = {
        run.name: _evaluation(run, max(1, _ANSWERS // share), max(1, _TEXTS // share)) for run in evaluated[:_ANSWERS]
    }
    rollouts = {run.name: texts for run in runs[:_TEXTS] if (texts := marked_rollouts(run.rollouts))}
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return Report(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        subtitle=state_of(runs[0]).capitalize() if len(runs) == 1 else _states(runs),
        command=runs[0].command if len(runs) == 1 else None,
        runs=runs,
        findings={run.name: findings_of(run) for run in runs},
        summary=_summary(runs),
        charts=charts_of(runs[:MOST_DRAWN]),
        evaluations=evaluations,
        rollouts=rollouts,
        made=[table for table in (_differences(runs), _data(runs), _cost(runs), _versions(runs)) if table.rows],
        configs={
            run.name: yaml.safe_dump(dict(run.config), sort_keys=False, allow_unicode=True, width=100)
            for run in runs[:_MOST_CONFIGS]
            if run.config
        },
        footer=f"distill-tune {distill_tune.__version__}, {now}",
    )


def state_of(run: RunFiles) -> str:
    """``finished``, ``running: step 12 of 300``, ``stopped after step 12 of 300; resume=auto goes on``."""
    last = int(run.steps[-1]["step"]) if run.steps else 0
    of_all = f" of {run.total_steps:,}" if run.total_steps else ""
    if run.state == "finished":
        return f"finished after {last:,} steps" if last != 1 else "finished after 1 step"
    if run.state == "running":
        return f"running: step {last:,}{of_all}"
    return f"stopped after step {last:,}{of_all}; the same line with resume=auto goes on"


def _states(runs: Sequence[RunFiles]) -> str:
    return ", ".join(f"{number} {state}" for state, number in collections.Counter(run.state for run in runs).items())


def _cells(*texts: Any) -> list[Cell]:
    return [text if isinstance(text, Cell) else Cell(str(text)) for text in texts]


def _mean_of_last(run: RunFiles, name: str) -> Any:
    values = run.column(name)[1][-_LAST:]
    return statistics.fmean(values) if any(values) else None


def _last(run: RunFiles, name: str) -> Any:
    """Of the last step that has it; what is not finite there, null in the file, is no earlier step's."""
    return next((line[name] for line in reversed(run.steps) if name in line), None)


def _summary(runs: Sequence[RunFiles]) -> Table:
    """Losses are means of the last steps."""
    figures = {
        "divergence": lambda run: tidy(_mean_of_last(run, "kd_loss")),
        "cross-entropy": lambda run: tidy(_mean_of_last(run, "ce_loss")),
        "validation divergence": lambda run: tidy(_last(run, "val_kd_loss") or None),
        "validation cross-entropy": lambda run: tidy(_last(run, "val_ce_loss") or None),
        "tokens": lambda run: _short(_last(run, "total_tokens")),
        "tokens/s": lambda run: tidy(_speed(run)),
        "peak memory": lambda run: _binary(_peak(run)),
        "student": lambda run: _short(run.facts.get("student_parameters")),
        "trained": lambda run: _short(run.facts.get("trained_parameters")),
        "teacher": lambda run: _short(run.facts.get("teacher_parameters")),
        "time": lambda run: duration(_seconds(run)),
    }
    columns = {name: [figure(run) for run in runs] for name, figure in figures.items()}
    there = {name: column for name, column in columns.items() if set(column) != {NOTHING}}
    rows = [
        _cells(run.name, _state_and_steps(run), *(column[number] for column in there.values()))
        for number, run in enumerate(runs)
    ]
    few = min(_LAST, max(len(run.steps) for run in runs))
    title = f"Runs (losses: means of the last {few} steps)" if few > 1 else "Runs"
    return Table(title, ["run", "state", *there], rows, names=2)


def _state_and_steps(run: RunFiles) -> Cell:
    last = int(run.steps[-1]["step"]) if run.steps else 0
    total = f" of {run.total_steps:,}" if run.total_steps and run.total_steps != last else ""
    return Cell(run.state, f"step {last:,}{total}")


def _seconds(run: RunFiles) -> float | None:
    seconds = [value for name in ("seconds", "val_seconds") for value in run.column(name)[1]]
    return sum(seconds) if seconds else None


def _speed(run: RunFiles) -> float | None:
    """Over all steps but the first, which warms up."""
    lines = [line for line in run.steps if is_figure(line.get("tokens")) and is_figure(line.get("seconds"))]
    lines = lines[1:] or lines
    seconds = sum(line["seconds"] for line in lines)
    return sum(line["tokens"] for line in lines) / seconds if seconds else None


def _peak(run: RunFiles) -> float | None:
    return max(run.column("peak_memory_bytes")[1], default=None)


def _short(value: Any) -> str:
    return short(value) if is_figure(value) else NOTHING


def _binary(value: Any) -> str:
    return binary(value) if is_figure(value) else NOTHING


# ---- How the runs came about


def _differences(runs: Sequence[RunFiles]) -> Table:
    keys = differing([run.config for run in runs])
    title = "What differs between the configs"
    if len(runs) <= _ACROSS:
        return Table(
            title,
            ["key", *(run.name for run in runs)],
            [_cells(key, *row) for key, row in keys.items()],
            names=1 + len(runs),
        )
    rows = [_cells(run.name, *(row[number] for row in keys.values())) for number, run in enumerate(runs)]
    return Table(title, ["run", *keys], rows if keys else [], names=1 + len(keys))


def _data(runs: Sequence[RunFiles]) -> Table:
    """Rows that are the same have the same fingerprint, whatever their file is called."""
    rows = []
    for run in runs:
        for told in [*_list(run.facts.get("data")), *_list(run.facts.get("data_val"))]:
            source = str(told.get("source"))
            figures = [_count(told.get(name)) for name in ("rows", "tokens", "supervised_tokens")]
            rows.append(_cells(run.name, told.get("name"), source, told.get("fingerprint"), *figures))
    head = ["run", "data", "source", "fingerprint", "rows", "tokens", "learned"]
    return Table("Data: the same rows have the same fingerprint", head, rows, names=4)


def _list(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _count(value: Any) -> str:
    return f"{value:,}" if is_figure(value) else NOTHING


def _cost(runs: Sequence[RunFiles]) -> Table:
    parts = {"steps": "seconds", "of them writing answers": "rollout_seconds", "validation": "val_seconds"}
    columns = {told: [sum(run.column(name)[1]) for run in runs] for told, name in parts.items()}
    there = {told: column for told, column in columns.items() if any(column)}
    rows = [
        _cells(
            run.name,
            _device(run),
            str(run.facts.get("started") or NOTHING),
            *(duration(column[number]) for column in there.values()),
            tidy((_seconds(run) or 0) / 3600 * _processes(run), 3),
        )
        for number, run in enumerate(runs)
        if run.steps
    ]
    return Table("Cost", ["run", "device", "started", *there, "device hours"], rows, names=3)


def _device(run: RunFiles) -> str:
    name = run.facts.get("device")
    if not name:
        return NOTHING
    return f"{_processes(run)} x {name}" if _processes(run) > 1 else str(name)


def _processes(run: RunFiles) -> int:
    count = run.facts.get("processes")
    return count if is_figure(count) and isinstance(count, int) else 1


def _versions(runs: Sequence[RunFiles]) -> Table:
    found = [run.facts.get("versions") for run in runs]
    versions = [of_run if isinstance(of_run, Mapping) else {} for of_run in found]
    names = dict.fromkeys(name for of_run in versions for name in of_run)
    rows = [
        _cells(run.name, *(of_run.get(name, NOTHING) for name in names))
        for run, of_run in zip(runs, versions, strict=True)
        if of_run
    ]
    return Table("Versions", ["run", *names], rows, names=1 + len(names))


# ---- What was evaluated


def _evaluation(run: RunFiles, answers: int, texts: int) -> Evaluation:
    results = run.evaluation
    shown = shown_answers(results, run.samples(), answers)
    marked = marked_texts(results, run.samples(), texts)
    if results.get("version") != _RESULTS_VERSION:
        told = f"results.json is of version {results.get('version')}, which this version of distill-tune cannot show"
        return Evaluation([], [told], shown, marked)
    # It imports PyTorch, by its package: only where it is needed.
    from distill_tune.evaluation.tables import blocks, in_a_line, sentences

    tables = [
        Table(
            block.title,
            [in_a_line(heading) for heading in block.headings],
            [[Cell(cell.text, " to ".join(cell.bounds) if cell.bounds else "") for cell in row] for row in block.rows],
            block.names,
        )
        for block in blocks(results)
    ]
    return Evaluation(tables, sentences(results), shown, marked)
