"""A report as Markdown, for a model card or a pull request: what users and models wrote stands in blocks of code."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from distill_tune.reports.evaluated import MarkedText, level_of
from distill_tune.reports.report import Cell, Report, Table

_DIFFERS = 3  # the level from which a token is marked


def markdown_of(report: Report, pictures: Mapping[str, Path]) -> str:
    """
    Args:
        pictures: by chart a file beside it.
    """
    return "\n\n".join(_parts(report, pictures)) + "\n"


def _parts(report: Report, pictures: Mapping[str, Path]) -> Iterator[str]:
    yield f"## {_plain(report.title)}"
    yield _plain(report.subtitle)
    if report.command:
        yield _block(report.command, "sh")
    items = [(name, finding) for name, findings in report.findings.items() for finding in findings]
    if items:
        yield "### Findings"
        yield "\n".join(f"- {_of_run(report, name)}{_plain(f'{of.told} Try {of.to_try}.')}" for name, of in items)
    yield _table(report.summary)
    if pictures:
        yield "### Curves"
        titles = {chart.figure.name: chart.title for chart in report.charts}
        yield "\n".join(f"![{_plain(titles[name])}]({quote(path.name)})" for name, path in pictures.items())
    for name, evaluation in report.evaluations.items():
        yield f"### Evaluation{_named(report, name)}"
        yield from map(_table, evaluation.tables)
        yield "\n".join(f"- {_plain(sentence)}" for sentence in evaluation.sentences)
        for answers in evaluation.answers:
            yield f"**{_plain(answers.title)}**"
            yield _block(f"{answers.prompt}\n\n" + "\n\n".join(f"{who}: {text}" for who, text in answers.texts.items()))
        for texts in evaluation.texts:
            yield "Tokens at which student and teacher differ by 1 nat or more stand in brackets:"
            yield _block("\n\n".join(f"{text.by}: {_marked(text)}" for text in texts))
    if report.made:
        yield "### How it was made"
        yield from map(_table, report.made)
    for name, config in report.configs.items():
        yield f"config.yaml{_named(report, name)}:"
        yield _block(config.rstrip(), "yaml")
    yield f"*{_plain(report.footer)}*"


def _named(report: Report, name: str) -> str:
    return f": {_plain(name)}" if len(report.runs) > 1 else ""


def _of_run(report: Report, name: str) -> str:
    return f"**{_plain(name)}**: " if len(report.runs) > 1 else ""


def _table(table: Table) -> str:
    rows = [[_plain(heading) for heading in table.head]]
    rows.append(["---"] * table.names + ["---:"] * (len(table.head) - table.names))
    rows += [[_cell(cell) for cell in row] for row in table.rows]
    return f"**{_plain(table.title)}**\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(cell: Cell) -> str:
    return _plain(f"{cell.text} ({cell.below})" if cell.below else cell.text)


def _plain(text: str) -> str:
    """In a line, and nothing of it markup."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", " ".join(escaped.split()))


def _block(text: str, language: str = "text") -> str:
    """As it is: between more backquotes than any row of them in it."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _marked(text: MarkedText) -> str:
    parts = [f"[{token}]" if level_of(figure) >= _DIFFERS else token for token, figure in text.tokens]
    return "".join(parts) + (" …" if text.is_cut else "")
