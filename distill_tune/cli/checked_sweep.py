"""Of a sweep what can be told before its first trial: what is wrong with any of them, and what all of them take."""

import contextlib
import io
import shlex
from collections.abc import Sequence

from distill_tune.cli.plan import CONTEXT, DEFAULT_GPUS, named_gpu
from distill_tune.cli.validate import missing_on_this_machine, prepare_evaluation, validated
from distill_tune.cli.without_weights import config_without_weights
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config, find_recipe
from distill_tune.config.load import load_config
from distill_tune.config.recipe_keys import Recipe
from distill_tune.config.trust import is_known
from distill_tune.config.values import needs_teacher
from distill_tune.counts import counted, rough_duration
from distill_tune.errors import CollectedFaults, Faults, UserError
from distill_tune.sizes import binary
from distill_tune.sweep.asked import AskedSweep
from distill_tune.sweep.trials import Trial
from distill_tune.sweep.values import Settings, overrides_of, to_check


def check(asked: AskedSweep, runs: bool) -> None:
    """Keys and values of every trial, and models without weights and rows with each value that any has.

    What the first one tells of its rows is printed.

    Args:
        runs: False where this machine need not have what trials need.

    Raises:
        UserError: with the faults of all trials, each once.
    """
    _require_rows(asked)
    asked.search()  # which tells where its package is missing
    each = to_check(asked.axes)
    keys, parts = CollectedFaults(""), CollectedFaults("")
    with contextlib.redirect_stdout(io.StringIO()):
        for settings in [*asked.points, *each]:
            with keys:
                cfg = checked_config(asked.recipe, asked.name, _overrides(asked, settings), "known")
                if asked.objective.name == "val_kd_loss" and not needs_teacher(cfg):
                    raise UserError("kd_ratio=0: asks no teacher, so there is no val_kd_loss; take --objective kl")
    _raise(asked, keys)
    for number, settings in enumerate(each):
        told = contextlib.nullcontext() if number == 0 else contextlib.redirect_stdout(io.StringIO())
        with parts, told:
            cfg = validated(asked.recipe, asked.name, _overrides(asked, settings), asked.num_processes)
            if number == 0 and asked.objective.by_evaluation:
                _check_evaluation(asked, settings, parts)
            if runs and (missing := missing_on_this_machine(cfg)):
                raise UserError(missing)
    _raise(asked, parts)


def _overrides(asked: AskedSweep, settings: Settings) -> list[str]:
    """Of a trial that has no folder yet."""
    return asked.overrides_of(asked.folder / "trial_0", Trial(0, dict(settings), asked.seed))


def _require_rows(asked: AskedSweep) -> None:
    """
    Raises:
        UserError: there is nothing to compare trials on, or no teacher that the objective asks for.
    """
    has_test = asked.config.get("dataset_test") is not None
    if asked.config.get("dataset_val") is None and not (has_test and asked.objective.by_evaluation):
        ways = ["'+dataset_val={_component_: distill_tune.data.instruct, source: held_out.json}'"]
        if has_test:
            ways = ["'+dataset_val=${dataset_test}'", "take --objective bits_per_byte, for which dataset_test will do"]
        raise UserError(
            "dataset_val: missing; trials are compared on its rows, which none is trained on: add it to the config, "
            f"set {', or '.join(ways)}"
        )
    if asked.objective.name in ("kl", "val_kd_loss") and asked.config.get("teacher_model") is None:
        raise UserError(
            f"teacher_model: missing; --objective {asked.objective.name} measures how far a trial is from it"
        )


def _check_evaluation(asked: AskedSweep, settings: Settings, faults: CollectedFaults) -> None:
    """Of what the recipe evaluate is given for each trial."""
    checked_config(find_recipe("evaluate"), asked.name, asked.measuring, "known")
    cfg = load_config(find_config(asked.name), [*_overrides(asked, settings), *asked.measuring], is_known)
    if cfg.get("dataset_val") is not None:
        cfg.pop("dataset_test", None)
    else:
        print(
            "dataset_val: missing, so trials are compared on dataset_test, where the best will look a little too good"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # of models that are not there yet
        prepare_evaluation(cfg, faults)


def _raise(asked: AskedSweep, faults: CollectedFaults) -> None:
    if found := [*dict.fromkeys(faults)]:
        if len(found) == 1:
            raise UserError(found[0])
        raise Faults(f"config {find_config(asked.name)} and the command line", found)


def price(asked: AskedSweep, gpus: Sequence[str] | None) -> None:
    """Print memory, disk, work and hours, from models without weights and the rows' shapes.

    Of settings that differ in one key from the first; what is told of all runs is that many times their mean.

    Raises:
        UserError: a GPU that is not known.
    """
    from distill_tune.cli.planned_run import PlannedRun
    from distill_tune.evaluation import estimate
    from distill_tune.models import computed_in

    cards = [named_gpu(name) for name in gpus or DEFAULT_GPUS]
    each, runs = to_check(asked.axes), list[PlannedRun]()
    with contextlib.redirect_stdout(io.StringIO()):
        for settings in each:
            cfg = config_without_weights(asked.recipe, asked.name, _overrides(asked, settings))
            runs.append(PlannedRun.of(cfg, asked.num_processes, Recipe(asked.recipe).is_distributed))
    largest = max(range(len(runs)), key=lambda number: runs[number].memory.peak)
    most = runs[largest]
    disk = max(
        estimate.checkpoint_bytes(run.cfg, run.student)
        + sum(p.numel() for p in run.student.parameters()) * computed_in(run.student).itemsize
        for run in runs
    )
    steps = sorted({run.data.total for run in runs})
    span = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    work = sum(run.num_processes * (run.work.student + run.work.teacher) for run in runs) / len(runs)
    print(f"each: {span} steps, {binary(most.memory.peak)} of memory at most ({_title(each[largest])})")
    print(f"disk: {binary(asked.num_runs * disk)}, of each run its model and a checkpoint")
    print(
        f"work: some {asked.num_runs * work / 1e15:,.3g} PFLOP for {counted(asked.num_runs, 'run')}, evaluations aside"
    )
    for card in cards:
        seconds = [run.seconds(card) for run in runs]
        available = card.memory - CONTEXT
        if most.memory.peak > available:
            fits = sum(run.memory.peak <= available for run in runs)
            print(f"{card}: {'not all fit' if fits else 'does not fit'} {binary(card.memory)}; see distill-tune plan")
        elif all(seconds):
            total = asked.num_runs * sum(found.total for found in seconds if found) / len(seconds) / len(asked.devices)
            print(f"{card}: some {rough_duration(total)}")
        else:
            print(f"{card}: fits")


def _title(settings: Settings) -> str:
    return shlex.join(overrides_of(settings))
