"""The charts as PNG."""

from pathlib import Path

from distill_tune.errors import UserError
from distill_tune.reports.curves import smoothed
from distill_tune.reports.report import Report
from distill_tune.reports.svg import FEWEST_SMOOTHED, SMOOTHING

# Of Okabe and Ito (2008), who chose them for the colour-blind, without those that are faint on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7046b0", "#4d4d4d")
_INCHES, _DOTS = (6.4, 3.6), 150


def write_pictures(report: Report, output: Path) -> dict[str, Path]:
    """By chart the file that was written beside ``output``.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(f"--png: {error}; pip install 'distill-tune[report]'") from error

    written = {}
    for chart in report.charts:
        figure = Figure(figsize=_INCHES, dpi=_DOTS, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for curve in chart.curves:
            colour, style = _COLOURS[curve.run % len(_COLOURS)], "--" if curve.run // len(_COLOURS) % 2 else "-"
            name = report.runs[curve.run].name
            if curve.is_validation:
                axes.plot(curve.steps, curve.values, ":o", color=colour, markersize=4, label=f"{name}, validation")
                continue
            is_smoothed = chart.figure.smooths and len(curve.values) >= FEWEST_SMOOTHED
            if curve.low:
                axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
            if is_smoothed:
                axes.plot(curve.steps, curve.values, style, color=colour, alpha=0.3, linewidth=0.8)
            values = smoothed(curve.values, SMOOTHING) if is_smoothed else curve.values
            marker = "s" if len(values) == 1 else ""
            axes.plot(curve.steps, values, style, color=colour, marker=marker, label=name)
        if chart.is_logarithmic:
            axes.set_yscale("log")
        axes.set(title=chart.title, xlabel="step", ylabel=chart.unit)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        if len(chart.curves) > 1:
            axes.legend(fontsize="small")
        written[chart.figure.name] = output.with_name(f"{output.stem}_{chart.figure.name}.png")
        figure.savefig(written[chart.figure.name])
    return written
