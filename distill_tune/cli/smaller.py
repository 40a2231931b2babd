"""Changes that make a planned run smaller."""

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from distill_tune.cli.planned_run import PlannedRun
from distill_tune.cli.without_weights import use_published
from distill_tune.config.components import check_components
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config
from distill_tune.errors import UserError

# The cheapest first; each is a list of overrides.
_CHANGES = (
    ["teacher_dtype=bf16"],
    ["enable_activation_checkpointing=True"],
    ["half the batch"],
    ["teacher_quantizer._component_=torchao.quantization.Int8WeightOnlyConfig"],
    ["optimizer._component_=torchao.optim.AdamW8bit"],
    ["optimizer._component_=torchao.optim.AdamW8bit", "+optimizer.bf16_stochastic_round=True"],
    ["teacher_quantizer._component_=torchao.quantization.Int4WeightOnlyConfig"],
    ["teacher_offload=True"],
)
_OF_SEVERAL = (
    ["teacher_dtype=bf16"],
    ["enable_activation_checkpointing=True"],
    ["half the batch"],
    ["optimizer._component_=torchao.optim.AdamW8bit"],
    ["optimizer._component_=torchao.optim.AdamW8bit", "+optimizer.bf16_stochastic_round=True"],
    ["fsdp_cpu_offload=True"],
)


def smaller(
    run: PlannedRun, config_name: str, overrides: Sequence[str], available: float
) -> Iterator[tuple[list[str], PlannedRun]]:
    """Changes that fit: each alone, or, where none does alone, the shortest row of them from the cheapest on.

    Args:
        available: bytes of a device.

    Yields:
        The overrides, and the run with them.
    """
    possible = _CHANGES if run.num_processes == 1 else _OF_SEVERAL
    alone = [changed for change in possible if (changed := _with(run, config_name, overrides, change))]
    if fitting := [(written, changed) for written, changed in alone if changed.memory.peak <= available]:
        yield from fitting
        return
    together: list[str] = []
    for change in possible:
        # A change takes the place of an earlier one of its key; only plain weights can be streamed.
        gone = ("teacher_quantizer",) if change == ["teacher_offload=True"] else (change[0].partition("=")[0],)
        more = [*(earlier for earlier in together if not earlier.startswith(gone)), *change]
        changed = _with(run, config_name, overrides, more)
        if changed is None:
            continue
        together = more
        if changed[1].memory.peak <= available:
            yield changed
            return


def _with(
    run: PlannedRun, config_name: str, overrides: Sequence[str], change: Sequence[str]
) -> tuple[list[str], PlannedRun] | None:
    """The change as overrides, and the run with it; None where it changes nothing or cannot be."""
    written = [part for one in change for part in (_half(run) if one == "half the batch" else [one])]
    if not written:
        return None
    added = [
        f"+{one}" if one[0] != "+" and one.partition("=")[0].partition(".")[0] not in run.cfg else one
        for one in written
    ]
    cfg = load_config(find_config(config_name), [*overrides, *added], lambda name: True)
    use_published(cfg)
    if cfg == run.cfg or check_components(cfg):  # nothing new, or its other arguments do not suit
        return None
    try:
        return added, run.with_config(cfg, run.data.halved() if "half the batch" in change else run.data)
    except UserError:
        return None


def _half(run: PlannedRun) -> list[str]:
    cfg: DictConfig = run.cfg
    accumulation = f"gradient_accumulation_steps={2 * cfg.get('gradient_accumulation_steps', 1)}"
    if cfg.batch_size is None:
        half = cfg.max_tokens_per_batch // 2
        return [f"max_tokens_per_batch={half}", accumulation] if half >= run.data.longest else []
    return [f"batch_size={cfg.batch_size // 2}", accumulation] if cfg.batch_size > 1 else []
