"""What somebody who watches a run should know of at once."""

from distill_tune.counts import counted
from distill_tune.reports.followed_run import FollowedRun
from distill_tune.shown_metrics import duration

_SILENT_STEPS, _SILENT_SECONDS = 20, 60  # without a line; both


def alarms_of(run: FollowedRun) -> list[str]:
    """Sentences, each with its figures; most of a run that goes on, some of one that has ended."""
    return [alarm for rule in (_not_applied, _silent) if (alarm := rule(run))]


def _not_applied(run: FollowedRun) -> str | None:
    if not (steps := run.not_applied):
        return None
    return f"{counted(len(steps), 'step')} not applied, the last of them step {steps[-1]}: loss or gradient not finite"


def _silent(run: FollowedRun) -> str | None:
    each = run.seconds_per_step
    if run.state != "running" or each is None or run.seconds_silent <= max(_SILENT_STEPS * each, _SILENT_SECONDS):
        return None
    return f"no new line for {duration(run.seconds_silent)}; a step takes {each:.3g} s"
