"""What a sweep leaves for people: its table in the terminal and as table.md."""

from rich.console import Console

from distill_tune.disk import write_text
from distill_tune.sweep.asked import AskedSweep
from distill_tune.sweep.results import results_of
from distill_tune.sweep.table import last_lines, markdown, sentences, terminal_table
from distill_tune.sweep.trials import Trial, Trials


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
