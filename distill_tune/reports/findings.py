"""What a run's figures say to somebody who knows: by rule, each with its figures and the key to try.

A rule looks at one thing, says a sentence or nothing, and would rather say nothing: a healthy run has no finding.
"""

import collections
import dataclasses
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from distill_tune.counts import counted
from distill_tune.reports.evaluated import nats_a_byte, students_of
from distill_tune.reports.numbers import duration, percent, tidy
from distill_tune.reports.run_files import RunFiles, is_figure
from distill_tune.sizes import binary

FEWEST_STEPS = 50  # of which it is said where losses go
_LITTLE = 0.02  # of a loss: less is no change
_ERRORS = 3.0  # standard errors of the difference between two means
_LATER = 2  # validations that have to be worse than the best one
_WORSE = 0.01  # of a validation's loss
_WINDOW, _FEWEST_NORMS = 50, 20  # steps before a gradient norm with which it is compared
_SPIKE, _LARGE_SPIKE, _FEW_SPIKES = 8.0, 20.0, 3
_SHOWN = 5  # steps or rows that are named
_SHARE_OF_ROLLOUTS, _SHARE_OF_VALIDATION, _SHARE_OF_MEMORY = 0.5, 0.25, 0.92
_FEWEST_TIMED, _FEWEST_RATES = 10, 10  # steps
_SHARE_OF_ROWS, _FEWEST_ROWS = 0.1, 5


@dataclasses.dataclass(frozen=True)
class Finding:
    """
    Attributes:
        rule: its name.
        told: what is seen, with its figures.
        to_try: the key that may help.
    """

    rule: str
    told: str
    to_try: str


def findings_of(run: RunFiles, names: Collection[str] | None = None) -> list[Finding]:
    """In the order of the rules: what ends a run or spoils it first.

    Args:
        names: of the rules that are asked; default all.
    """
    named = [(rule.__name__.strip("_"), rule) for rule in RULES]
    asked = [(name, rule) for name, rule in named if names is None or name in names]
    return [Finding(name, *found) for name, rule in asked if (found := rule(run)) is not None]


Found = tuple[str, str] | None  # told, to try


def _steps_not_applied(run: RunFiles) -> Found:
    bad = [int(line["step"]) for line in run.steps if line.get("applied") is False]
    if not bad:
        return None
    return (
        f"{counted(len(bad), 'step')} of {len(run.steps):,} had a loss or gradient that is not finite and "
        f"{'was' if len(bad) == 1 else 'were'} not applied: {_named(bad)}.",
        f"a lower optimizer.lr (now {_lr(run)}), clip_grad_norm, or mend the rows that the log names",
    )


def _gradient_norm_spikes(run: RunFiles) -> Found:
    steps, norms = run.column("grad_norm")
    spikes = []
    for at in range(_FEWEST_NORMS, len(norms)):
        usual = statistics.median(norms[max(0, at - _WINDOW) : at])
        if usual > 0 and norms[at] > _SPIKE * usual:
            spikes.append((norms[at] / usual, int(steps[at])))
    if not spikes or (len(spikes) < _FEW_SPIKES and max(spikes)[0] < _LARGE_SPIKE):
        return None
    clip = run.config.get("clip_grad_norm")
    return (
        f"The gradient norm spikes in {counted(len(spikes), 'step')}, to {max(spikes)[0]:.0f} times the median of the "
        f"steps before it: {_named([step for _, step in spikes])}.",
        f"clip_grad_norm={tidy(clip / 2)} (now {tidy(clip)})" if is_figure(clip) else "clip_grad_norm=1.0 (now none)",
    )


def _divergence_does_not_fall(run: RunFiles) -> Found:
    lines = [line for line in _with(run, "kd_loss") if line.get("kd_ratio", 1) and line["kd_loss"] > 0]
    if len(lines) < FEWEST_STEPS:
        return None
    parts = _fifths([line["kd_loss"] for line in lines])
    first, last = statistics.fmean(parts[0]), statistics.fmean(parts[-1])
    if first < 0.01 or last < (1 - _LITTLE) * first:
        return None
    return (
        f"The divergence from the teacher does not fall: {tidy(first)} a token in the first fifth of the run, "
        f"{tidy(last)} in the last.",
        f"a higher optimizer.lr (now {_lr(run)}), or kd_ratio nearer to 1 (now {tidy(lines[-1].get('kd_ratio'))}); "
        "`distill-tune validate` tells whether teacher and student read the rows alike",
    )


def _cross_entropy_rises_while_the_divergence_falls(run: RunFiles) -> Found:
    validated = _with(run, "val_ce_loss", "val_kd_loss")
    if len(validated) > _LATER:
        ce, kd = ([line[name] for line in validated] for name in ("val_ce_loss", "val_kd_loss"))
        lowest = min(range(len(ce)), key=ce.__getitem__)
        rises = (
            lowest < len(ce) - _LATER and ce[-1] > (1 + _LITTLE) * ce[lowest] and kd[-1] < (1 - _LITTLE) * kd[lowest]
        )
        told = f"from {tidy(ce[lowest])} in step {validated[lowest]['step']:,} to {tidy(ce[-1])}", "on validation rows"
        of_kd = kd[lowest], kd[-1]
    else:
        lines = [line for line in _with(run, "ce_loss", "kd_loss") if line["ce_loss"] > 0 < line["kd_loss"]]
        if len(lines) < FEWEST_STEPS:
            return None
        ces, kds = (_fifths([line[name] for line in lines]) for name in ("ce_loss", "kd_loss"))
        means = [statistics.fmean(part) for part in ces]
        lowest = min(range(len(means)), key=means.__getitem__)
        rise, error = means[-1] - means[lowest], _error(ces[-1], ces[lowest])
        of_kd = statistics.fmean(kds[lowest]), statistics.fmean(kds[-1])
        rises = rise > max(_LITTLE * means[lowest], _ERRORS * error) and of_kd[1] < (1 - _LITTLE) * of_kd[0]
        told = f"from {tidy(means[lowest])} to {tidy(means[-1])}", "on the rows of training"
    if not rises:
        return None
    return (
        f"Cross-entropy rises {told[0]} nats a token {told[1]}, while the divergence falls from {tidy(of_kd[0])} to "
        f"{tidy(of_kd[1])}: the student follows its teacher away from the answers of the data.",
        f"a lower kd_ratio (now {tidy(run.config.get('kd_ratio', 0.5))}), a teacher that was fine-tuned on these rows, "
        "or kd_token_weight=distill_tune.losses.TargetProbability",
    )


def _overfits(run: RunFiles) -> Found:
    weighed = {(line.get("kd_ratio"), line.get("temperature")) for line in _with(run, "val_loss")}
    name = "val_loss" if len(weighed) == 1 else "val_ce_loss"  # a loss whose weights change cannot be compared
    lines = [line for line in _with(run, name) if line[name] > 0]
    if len(lines) <= _LATER:
        return None
    lowest = min(range(len(lines)), key=lambda at: lines[at][name])
    later = [line[name] for line in lines[lowest + 1 :]]
    if len(later) < _LATER or min(later) <= (1 + _WORSE) * lines[lowest][name]:
        return None
    kept = run.config.get("keep_best")
    return (
        f"It overfits from step {lines[lowest]['step']:,} on: {name} is {tidy(lines[lowest][name])} there and "
        f"{tidy(later[-1])} in step {lines[-1]['step']:,}.",
        f"fewer epochs; the best checkpoint is what is exported (keep_best={kept})"
        if kept
        else f"keep_best={name}, which exports the best checkpoint, fewer epochs, or more rows",
    )


def _teacher_is_worse(run: RunFiles) -> Found:
    evaluation = run.evaluation
    teacher, base = evaluation.get("teacher"), evaluation.get("base")
    other = base or next(iter(students_of(evaluation)), None)
    if not teacher or not other:
        return None
    compared = [
        (of_teacher - of_other, sample)
        for sample in run.samples()
        if (of_teacher := nats_a_byte(sample, teacher)) is not None
        and (of_other := nats_a_byte(sample, other)) is not None
    ]
    worse = sorted((pair for pair in compared if pair[0] > 0), key=lambda pair: -pair[0])
    if len(worse) < max(_FEWEST_ROWS, _SHARE_OF_ROWS * len(compared)):
        return None
    by = collections.Counter(sample["category"] for _, sample in worse if sample.get("category"))
    most = f", most of them {by.most_common(1)[0][0]}" if len(by) > 1 else ""
    named = ", ".join(str(sample.get("document")) for _, sample in worse[:_SHOWN])
    return (
        f"The teacher gives the answers of {len(worse):,} of {len(compared):,} held-out documents "
        f"({percent(len(worse) / len(compared), 0)}) less likelihood than {other} does{most}; by the largest margin "
        f"document {named}.",
        "fine-tune the teacher on your own rows first (kd_ratio=0), a lower kd_ratio, or "
        "kd_token_weight=distill_tune.losses.TargetProbability, which lets it speak where it is right",
    )


def _time_goes_to_answers(run: RunFiles) -> Found:
    written, share = _share_of_time(run, "rollout_seconds")
    if share < _SHARE_OF_ROLLOUTS:
        return None
    return (
        f"{percent(share, 0)} of the time ({duration(written)}) goes into writing answers.",
        "rollouts.sampling.max_new_tokens, rollouts.every above 1 writes those of several steps at once, or "
        "rollouts.server has vLLM write them",
    )


def _time_goes_to_validation(run: RunFiles) -> Found:
    validated, share = _share_of_time(run, "val_seconds")
    if share < _SHARE_OF_VALIDATION:
        return None
    every = run.config.get("run_val_every_n_steps")
    return (
        f"{percent(share, 0)} of the time ({duration(validated)}) goes into validation, "
        f"{counted(len(_with(run, 'val_seconds')), 'time')}.",
        f"run_val_every_n_steps={2 * every} (now {every}), or fewer rows in dataset_val"
        if is_figure(every)
        else "fewer rows in dataset_val",
    )


def _memory_is_nearly_full(run: RunFiles) -> Found:
    memory, peaks = run.facts.get("device_memory_bytes"), run.column("peak_memory_bytes")[1]
    if not is_figure(memory) or not peaks or max(peaks) < _SHARE_OF_MEMORY * memory:
        return None
    return (
        f"Memory is nearly full: {binary(max(peaks))} of the {binary(memory)} that {run.facts.get('device')} has; a "
        "longer row may be too much.",
        "half the batch_size with gradient_accumulation_steps doubled, or enable_activation_checkpointing=True; "
        "`distill-tune plan` tells what each takes",
    )


def _learning_rate_still_rises(run: RunFiles) -> Found:
    steps, rates = run.column("lr")
    if run.state == "running" or len(rates) < _FEWEST_RATES:
        return None
    if not rates[-3] < rates[-2] < rates[-1] == max(rates):
        return None
    scheduler = run.config.get("lr_scheduler")
    warm_up = scheduler.get("num_warmup_steps") if isinstance(scheduler, Mapping) else None
    now = f" (now {tidy(warm_up)})" if is_figure(warm_up) else ""
    return (
        f"The learning rate was still rising when the run ended: {tidy(rates[-1])} in step {int(steps[-1]):,}.",
        f"a smaller lr_scheduler.num_warmup_steps{now}, or more steps",
    )


# Every rule takes a run, and gives what is told and what to try, or None.
RULES: Sequence[Callable[[RunFiles], Found]] = (
    _steps_not_applied,
    _gradient_norm_spikes,
    _divergence_does_not_fall,
    _cross_entropy_rises_while_the_divergence_falls,
    _overfits,
    _teacher_is_worse,
    _time_goes_to_answers,
    _time_goes_to_validation,
    _memory_is_nearly_full,
    _learning_rate_still_rises,
)


def _with(run: RunFiles, *names: str) -> list[Mapping[str, Any]]:
    """The steps that have all these figures."""
    return [line for line in run.steps if all(is_figure(line.get(name)) for name in names)]


def _fifths(values: Sequence[float]) -> list[Sequence[float]]:
    size = len(values) // 5
    return [values[part * size : (part + 1) * size] for part in range(4)] + [values[4 * size :]]


def _error(first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error of the difference between two means."""
    return (statistics.variance(first) / len(first) + statistics.variance(second) / len(second)) ** 0.5


def _share_of_time(run: RunFiles, name: str) -> tuple[float, float]:
    """Seconds, and their share of all that are known; steps' own seconds include those of answers."""
    if len(_with(run, "seconds")) < _FEWEST_TIMED:
        return 0.0, 0.0
    of_steps, of_validation, taken = (sum(run.column(key)[1]) for key in ("seconds", "val_seconds", name))
    return taken, taken / (of_steps + of_validation) if taken else 0.0


def _lr(run: RunFiles) -> str:
    optimizer = run.config.get("optimizer")
    return tidy(optimizer.get("lr")) if isinstance(optimizer, Mapping) else "its own"


def _named(steps: Sequence[int]) -> str:
    more = f" and {len(steps) - _SHOWN:,} more" if len(steps) > _SHOWN else ""
    return ", ".join(f"{step:,}" for step in steps[:_SHOWN]) + more
