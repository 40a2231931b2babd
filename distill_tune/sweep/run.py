"""A sweep from its first trial to its table."""

import functools
import shlex
from collections.abc import Mapping

from rich.console import Console

from distill_tune.disk import release_lock
from distill_tune.errors import UserError
from distill_tune.evaluation.named_models import AFTER
from distill_tune.reports.run_files import RunFiles
from distill_tune.sweep.asked import AskedSweep
from distill_tune.sweep.best import write_best
from distill_tune.sweep.folder import claim
from distill_tune.sweep.objective import figures_of_metrics, figures_of_results
from distill_tune.sweep.report import write_overlay, write_table
from distill_tune.sweep.results import to_repeat
from distill_tune.sweep.running import TrialProcess
from distill_tune.sweep.schedule import Schedule, next_planned, next_searched
from distill_tune.sweep.trials import Trial, Trials
from distill_tune.training.stop import StopSignals


def run_sweep(asked: AskedSweep) -> None:
    """Every trial, the best ones again with other seeds, then the table, best.yaml and the report.

    Raises:
        UserError: the folder is another sweep's or cannot be written; no trial came to its end.
    """
    search = asked.search()
    claim(asked.folder, asked.recipe.stem, asked.config, [axis.key for axis in asked.axes], asked.varied)
    trials, console = Trials(asked.folder), Console()
    objective, status = asked.objective, console.status("")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False, markup=False)

    def show(steps: Mapping[int, int]) -> None:
        status.update(", ".join(_progress(trials, number, step) for number, step in steps.items()))

    def start(trial: Trial, device: str | None) -> TrialProcess:
        environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        return TrialProcess(trials.folder_of(trial), asked.commands_of(trials, trial), environment)

    def measure(trial: Trial) -> dict[str, float]:
        run = RunFiles.open(trials.folder_of(trial))
        figures = figures_of_metrics(run.steps, run.config.get("keep_best"))
        return figures | (figures_of_results(run.evaluation, AFTER) if objective.by_evaluation else {})

    schedule = Schedule(trials, objective, start, measure, asked.devices, say, show, asked.num_runs)
    with StopSignals("trials end their step, with a checkpoint", "the same command goes on", "trial") as stop:
        with status:
            if search is not None:
                most = asked.most_searched
                propose = functools.partial(next_searched, search, most, trials, objective, schedule.tried)
                schedule.run(propose, stop, search)
            else:
                planned = [(point, asked.seed) for point in asked.points]
                schedule.run(functools.partial(next_planned, planned, trials, objective, schedule.tried), stop)
            before = -1
            while not stop.number and before < len(schedule.tried):  # else what is left has failed
                before = len(schedule.tried)
                again = to_repeat(trials, objective, asked.num_repeated, asked.other_seeds)
                schedule.run(functools.partial(next_planned, again, trials, objective, schedule.tried), stop)
        best = write_table(asked, trials, console)
        if best:
            file = asked.folder / "best.yaml"
            command = shlex.join(["distill-tune", *asked.run_of(str(file))])
            source = trials.folder_of(best)
            head = [command, f"{best.title}: the best of a sweep by {objective.name}, as {source} was run"]
            write_best(file, source, asked.config, asked.folder / "best", head)
            say(f"  {file}  the best's config, whole: {command}")
        if overlay := write_overlay(asked, trials):
            say(f"  {overlay}  the best settings' curves, one over the other")
        release_lock(asked.folder)
        if stop.number:
            stop.leave(sum(trial.state == "finished" for trial in trials), stop.number)
    if not best:
        raise UserError(f"sweep: no trial came to its end; {trials.folder / 'trial_N' / 'log.txt'} has what each said")


def _progress(trials: Trials, number: int, step: int) -> str:
    total = RunFiles(trials.folder / f"trial_{number}", "").total_steps
    return f"trial_{number}: step {step}" + (f" of {total}" if total else "")
