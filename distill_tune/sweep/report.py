"""What a sweep leaves for people: its table in the terminal and as table.md, and the runs' curves in report.html."""

from pathlib import Path

from rich.console import Console

from distill_tune.disk import write_text
from distill_tune.reports.run_files import RunFiles, is_run
from distill_tune.reports.write import write_report
from distill_tune.sweep.asked import AskedSweep
from distill_tune.sweep.results import results_of
from distill_tune.sweep.table import label, last_lines, markdown, sentences, terminal_table
from distill_tune.sweep.trials import Trial, Trials

_MOST_OVERLAID = 12  # runs that can be told apart in a plot


def write_table(asked: AskedSweep, trials: Trials, console: Console) -> Trial | None:
    """Print the table and write it.

    Returns:
        The best trial: of the best setting the first; None where none has come to its end.
    """
    results = results_of(trials, asked.objective)
    told = [*sentences(results, asked.objective, asked.axes), *last_lines(trials, asked.objective)]
    file = asked.folder / "table.md"
    write_text(file, markdown(trials, results, asked.objective) + "\n" + "\n".join(f"{line}\n" for line in told))
    console.print(terminal_table(trials, results, asked.objective, console))
    for line in told:
        console.print(line, highlight=False, markup=False)
    console.print(f"  {file}  this table", soft_wrap=True, highlight=False, markup=False)
    return results[0].trials[0] if results else None


def write_overlay(asked: AskedSweep, trials: Trials) -> Path | None:
    """The best settings' runs side by side, as `distill-tune report` writes them; None where there are none.

    Raises:
        UserError: the file cannot be written.
    """
    best = [result.trials[0] for result in results_of(trials, asked.objective)]
    runs = [RunFiles.open(folder, label(trial)) for trial in best if is_run(folder := trials.folder_of(trial))]
    return write_report(runs[:_MOST_OVERLAID], asked.folder / "report.html")[0] if runs else None
