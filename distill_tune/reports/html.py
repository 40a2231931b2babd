"""A report as one HTML file: nothing of it is fetched, and what users and models wrote is text, never markup."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distill_tune.counts import counted
from distill_tune.reports import svg
from distill_tune.reports.curves import Chart, Curve, tokens_at
from distill_tune.reports.evaluated import Answers, MarkedText, level_of, levels
from distill_tune.reports.findings import FEWEST_STEPS, RULES
from distill_tune.reports.numbers import tidy
from distill_tune.reports.report import MOST_DRAWN, Report, Table
from distill_tune.reports.run_files import RunFiles

_HERE = Path(__file__).parent
_DIGITS = 5  # of a figure that is told when a pointer rests on it


def html_of(report: Report) -> str:
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    tokens = {number: tokens_at(run) for number, run in enumerate(report.runs[:MOST_DRAWN])}
    body = "\n".join(_body(report, tokens))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)} - distill-tune</title>\n"
        f"<style>\n{(_HERE / 'page.css').read_text(encoding='utf-8')}</style>\n</head>\n<body>\n{body}\n"
        f'<script type="application/json" id="data">{_data(report, tokens)}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


Tokens = Mapping[int, tuple[Sequence[float], Sequence[float]]]


def _body(report: Report, tokens: Tokens) -> Iterator[str]:
    yield f'<header><h1>{escape(report.title)}</h1><p class="soft">{escape(report.subtitle)}</p>'
    if report.command:
        yield f'<p class="soft"><code>{escape(report.command)}</code></p>'
    yield "</header><main>"
    yield from _findings(report)
    yield _table(report.summary)
    yield from _charts(report, tokens)
    for name, evaluation in report.evaluations.items():
        yield f"<h2>Evaluation{_of_run(report, name)}</h2>"
        yield from map(_table, evaluation.tables)
        told = "".join(f"<li>{escape(sentence)}</li>" for sentence in evaluation.sentences)
        yield f'<ul class="sentences">{told}</ul>'
        if evaluation.answers:
            yield f"<h2>Answers{_of_run(report, name)}</h2>"
            yield from map(_answers, evaluation.answers)
        if evaluation.texts:
            yield f"<h2>Where student and teacher differ{_of_run(report, name)}</h2>"
            yield "<p>The answers of the data, coloured by the divergence KL(teacher || student) at each token.</p>"
            yield _levels()
            yield from map(_texts, evaluation.texts)
    for name, rollouts in report.rollouts.items():
        yield f"<h2>Answers of the student while it trained{_of_run(report, name)}</h2>"
        yield "<p>Coloured by how much less likely than to the student each token is to the teacher.</p>"
        yield _levels()
        yield from (_texts([text]) for text in rollouts)
    if report.made or report.configs:
        yield "<h2>How it was made</h2>"
    yield from map(_table, report.made)
    for name, config in report.configs.items():
        yield f"<details><summary>config.yaml{_of_run(report, name)}</summary><pre>{escape(config)}</pre></details>"
    yield f"</main><footer>{escape(report.footer)}</footer>"


def _of_run(report: Report, name: str) -> str:
    return f": {escape(name)}" if len(report.runs) > 1 else ""


def _findings(report: Report) -> Iterator[str]:
    yield "<h2>Findings</h2>"
    items = [(name, finding) for name, findings in report.findings.items() for finding in findings]
    if not items:
        rules = counted(len(RULES), "rule")
        told = "losses, gradients, time and memory look as they should."
        if any(len(run.steps) < FEWEST_STEPS for run in report.runs):
            told = (
                "gradients, time and memory look as they should. Losses fall or rise too little to tell before step "
                f"{FEWEST_STEPS}."
            )
        yield f"<p>None of the {rules} has anything to say: {told}</p>"
        return
    yield '<ul class="findings">'
    for name, finding in items:
        run = f'<span class="run">{escape(name)}:</span> ' if len(report.runs) > 1 else ""
        yield f'<li>{run}{escape(finding.told)} <span class="key">Try {_with_code(finding.to_try)}.</span></li>'
    yield "</ul>"


def _with_code(text: str) -> str:
    """Commands and keys that are set as code."""
    return re.sub(r"`([^`]+)`|\b(\w[\w.]*=[\w.]+)", lambda found: f"<code>{found[1] or found[2]}</code>", escape(text))


def _table(table: Table) -> str:
    def cell(kind: str, at: int, text: str) -> str:
        return f"<{kind}{' class=name' if at < table.names else ''}>{text}</{kind}>"

    head = "".join(cell("th", at, escape(text)) for at, text in enumerate(table.head))
    rows = [
        "".join(
            cell("td", at, escape(of.text) + (f'<span class="below">{escape(of.below)}</span>' if of.below else ""))
            for at, of in enumerate(row)
        )
        for row in table.rows
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<h3>{escape(table.title)}</h3><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


# ---- Curves


def _charts(report: Report, tokens: Tokens) -> Iterator[str]:
    if not report.charts:
        yield "<h2>Curves</h2><p>There is no step yet.</p>"
        return
    yield f"<h2>Curves</h2>{_controls(report, tokens)}"
    if legend := _legend(report.charts):
        yield f'<p class="soft">{legend}</p>'
    yield '<div class="charts by-steps">'
    for chart in report.charts:
        unit = f' <span class="soft">{escape(chart.unit)}</span>'
        caption = f"<figcaption>{escape(chart.title)}{unit}</figcaption>"
        yield f"<figure data-chart>{caption}{svg.drawn(chart, tokens)}</figure>"
    yield "</div>"
    if len(report.runs) > MOST_DRAWN:
        yield f"<p>The curves are those of the first {MOST_DRAWN} of {len(report.runs)} runs.</p>"


def _legend(charts: Sequence[Chart]) -> str:
    curves = [curve for chart in charts for curve in chart.curves]
    parts = []
    if any(curve.is_validation for curve in curves):
        parts.append("Dots: validation.")
    if any(len(curve.steps) == 1 and not curve.is_validation for curve in curves):
        parts.append("Squares: a single step.")
    if any(curve.low for curve in curves):
        parts.append("Bands: lowest and highest of the steps that share a point.")
    if any(chart.marks for chart in charts):
        parts.append("Crosses: steps that were not applied.")
    return " ".join(parts)


def _controls(report: Report, tokens: Tokens) -> str:
    drawn = report.runs[:MOST_DRAWN]
    parts = []
    if any(steps for steps, _ in tokens.values()):
        parts.append(
            '<span class="choice"><label><input type="radio" name="by" value="steps" checked>steps</label> '
            '<label><input type="radio" name="by" value="tokens">tokens</label></span>'
        )
    if any(_is_smoothed(chart, curve) for chart in report.charts for curve in chart.curves):
        parts.append(
            '<label class="choice">smoothing <input type="range" id="smoothing" min="0" max="0.98" step="0.02" '
            f'value="{svg.SMOOTHING}"></label>'
        )
    for number, run in enumerate(drawn if len(drawn) > 1 else []):
        parts.append(
            f'<label><input class="choice" type="checkbox" data-run="{number}" checked>'
            f'<span class="key-line {svg.colour_of(number)}"></span>{escape(run.name)}</label>'
        )
    return f'<div class="controls">{"".join(parts)}</div>'


def _is_smoothed(chart: Chart, curve: Curve) -> bool:
    return chart.figure.smooths and not curve.is_validation and len(curve.values) >= svg.FEWEST_SMOOTHED


def _data(report: Report, tokens: Tokens) -> str:
    """For the script; `<` is written so that nothing in it ends its element."""
    data = {
        "frame": [svg.WIDTH, svg.HEIGHT, svg.LEFT, svg.RIGHT, svg.TOP, svg.BOTTOM],
        "smoothing": svg.SMOOTHING,
        "runs": [_run(run, number, *tokens[number]) for number, run in enumerate(report.runs[:MOST_DRAWN])],
        "charts": [
            {
                "curves": [_curve(chart, curve) for curve in chart.curves],
                "marks": {run: _rounded(steps) for run, steps in chart.marks.items()},
            }
            for chart in report.charts
        ],
    }
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _run(run: RunFiles, number: int, steps: Sequence[float], tokens: Sequence[float]) -> dict[str, Any]:
    whole = [round(count) for count in tokens]
    return {"name": run.name, "colour": svg.colour_of(number), "steps": _rounded(steps), "tokens": whole}


def _curve(chart: Chart, curve: Curve) -> dict[str, Any]:
    told: dict[str, Any] = {"r": curve.run, "s": _rounded(curve.steps), "v": _rounded(curve.values)}
    if curve.low:
        told |= {"l": _rounded(curve.low), "h": _rounded(curve.high)}
    if curve.is_validation:
        told["val"] = 1
    if _is_smoothed(chart, curve):
        told["smooth"] = 1
    return told


def _rounded(values: Sequence[float]) -> list[float]:
    """Whole ones as they are, others to some digits."""
    return [int(value) if value == int(value) else float(f"{value:.{_DIGITS}g}") for value in values]


# ---- Texts


def _answers(answers: Answers) -> str:
    texts = "".join(
        f'<div class="text"><b>{escape(who)}</b>{escape(text)}</div>' for who, text in answers.texts.items()
    )
    return f'{_heading(answers.title, answers.prompt)}<div class="side">{texts}</div>'


def _texts(texts: Sequence[MarkedText]) -> str:
    """One text by one or several models."""
    shown = "".join(f'<div class="text marked"><b>{escape(text.by)}</b>{_marked(text)}</div>' for text in texts)
    return f'{_heading(texts[0].title, texts[0].prompt)}<div class="side">{shown}</div>'


def _heading(title: str, prompt: str) -> str:
    asked = f'<div class="prompt">{escape(prompt)}</div>' if prompt else ""
    return f"<h3>{escape(title)}</h3>{asked}"


def _marked(text: MarkedText) -> str:
    parts = []
    for token, figure in text.tokens:
        level = level_of(figure)
        written = escape(token)
        parts.append(f'<i class=k{level} title="{tidy(figure, 3)}">{written}</i>' if level else written)
    return "".join(parts) + (" …" if text.is_cut else "")


def _levels() -> str:
    bounds = levels()
    names = [f"below {bounds[0]:g}", *(f"from {bound:g}" for bound in bounds)]
    items = "".join(f"<i class=k{level}>{name}</i>" for level, name in enumerate(names))
    return f'<div class="levels">nats: {items}</div>'
