"""Reports as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from distill_tune.disk import write_text
from distill_tune.errors import UserError
from distill_tune.reports.html import html_of
from distill_tune.reports.markdown import markdown_of
from distill_tune.reports.pictures import write_pictures
from distill_tune.reports.report import report_of
from distill_tune.reports.run_files import RunFiles


def write_report(
    runs: Sequence[RunFiles],
    output: Path | None = None,
    kind: Literal["html", "md"] = "html",
    with_pictures: bool = False,
) -> list[Path]:
    """
    Args:
        output: default ``report.html`` or ``report.md``: in the run's folder, of several in the current one.
        with_pictures: whether each plot is written beside it, as PNG by matplotlib.

    Returns:
        The file, then those of the plots.

    Raises:
        UserError: the file cannot be written, or matplotlib is asked for and not installed.
    """
    output = output or (runs[0].path if len(runs) == 1 else Path()) / f"report.{kind}"
    report = report_of(runs)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        pictures = write_pictures(report, output) if with_pictures else {}
        write_text(output, html_of(report) if kind == "html" else markdown_of(report, pictures))
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror}") from error
    return [output, *pictures.values()]
