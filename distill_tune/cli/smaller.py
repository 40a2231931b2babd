"""Changes that make a planned run smaller."""

from collections.abc import Iterator, Sequence

from distill_tune.cli.planned_run import PlannedRun
from distill_tune.cli.without_weights import use_published
from distill_tune.config.components import check_components
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config
from distill_tune.errors import UserError
from distill_tune.less_memory import Change, changes_of


def smaller(
    run: PlannedRun, config_name: str, overrides: Sequence[str], available: float, has_bf16: bool = True
) -> Iterator[tuple[list[str], PlannedRun]]:
    """Changes that fit: each alone, or, where none does alone, the shortest row of them from the cheapest on.

    Args:
        available: bytes of a device.
        has_bf16: whether it computes in bf16.

    Yields:
        The overrides, and the run with them.
    """
    possible = [
        change
        for change in changes_of(run.cfg, run.num_processes > 1, run.data.longest)
        if has_bf16 or not change.is_for_bf16
    ]
    alone = [changed for change in possible if (changed := _with(run, config_name, overrides, [change]))]
    if fitting := [(written, changed) for written, changed in alone if changed.memory.peak <= available]:
        yield from fitting
        return
    together: list[Change] = []
    for change in possible:
        more = [*(earlier for earlier in together if not change.replaces(earlier)), change]
        changed = _with(run, config_name, overrides, more)
        if changed is None:
            continue
        together = more
        if changed[1].memory.peak <= available:
            yield changed
            return


def _with(
    run: PlannedRun, config_name: str, overrides: Sequence[str], changes: Sequence[Change]
) -> tuple[list[str], PlannedRun] | None:
    """The changes as overrides, and the run with them; None where they change nothing or cannot be."""
    written = [one for change in changes for one in change.overrides]
    added = [one if one.partition("=")[0].partition(".")[0] in run.cfg else f"+{one}" for one in written]
    cfg = load_config(find_config(config_name), [*overrides, *added], lambda name: True)
    use_published(cfg)
    if cfg == run.cfg or check_components(cfg):  # nothing new, or its other arguments do not suit
        return None
    is_halved = any(change.halves_batch for change in changes)
    try:
        return added, run.with_config(cfg, run.data.halved() if is_halved else run.data)
    except UserError:
        return None
