"""`distill-tune plan`: what a run needs, before anyone pays for a GPU."""

import argparse
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from distill_tune.cli.validate import read_arguments
from distill_tune.config.check import checked_config
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config
from distill_tune.errors import UserError

_DESCRIPTION = """Tell the memory, the work and the hours of a run, without a GPU and without loading a weight.

  distill-tune plan [RECIPE] --config CONFIG [overrides] [--gpu NAME]
  distill-tune plan --nproc_per_node 8 kd_distributed --config CONFIG --gpu H100

Memory is told by part and for each process, from the models' shapes and the longest batches of the data; hours are at
40 % of the GPU's data-sheet rate, which a well-fed one reaches. Where the run does not fit, the cheapest changes that
make it fit are named. GPUs: A10, A10G, A100, H100, H200, L4, L40S, 3090, 4090 (default: all that are common).
"""
_DEFAULT_GPUS = ("4090", "A10", "A100", "H100", "H200")
_RATE = 0.4  # share of the data-sheet rate
_CONTEXT = 1.0e9  # what CUDA's own context and the allocator's gaps take
_STEPS = 100  # of which the largest batch is sought, and the work averaged

# What makes a run smaller, the cheapest first; each is a list of overrides.
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


@dataclasses.dataclass(frozen=True)
class _Run:
    """What the estimates are made from."""

    cfg: DictConfig
    student: Any
    teachers: list
    batches: list
    num_processes: int

    @property
    def shards(self) -> int:
        return max(1, self.num_processes // int(self.cfg.get("data_parallel_replicate_dim") or 1))

    @functools.cached_property
    def memory(self) -> Any:
        from distill_tune.evaluation import estimate

        largest = max(self.batches, key=lambda batch: sum(batch.lengths))
        return estimate.memory_of(self.cfg, self.student, self.teachers, largest, self.shards)


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "plan",
        help="tell a run's memory, work and hours",
        description=_DESCRIPTION,
        usage="distill-tune plan [torchrun options] [RECIPE] --config CONFIG [key=value ...] [--gpu NAME]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_plan)


def _plan(options: argparse.Namespace) -> None:
    arguments, gpus = _take_gpu(list(options.arguments))
    recipe, name, overrides, num_processes = read_arguments(arguments)
    cfg = checked_config(recipe, name, overrides)

    from distill_tune import training
    from distill_tune.training.flops import GPUS

    if unknown := [gpu for gpu in gpus if gpu not in GPUS]:
        raise UserError(f"--gpu {unknown[0]}: not known; there are {', '.join(sorted(GPUS))}")
    cfg = checked_config(recipe, name, overrides, "all")
    built = _built(cfg)
    steps = training.plan_steps(cfg, built, cfg.get("seed") or 0, num_processes)
    run = _Run(cfg, built.student, list(built.teacher.models), _batches(steps.plan), num_processes)
    flops = _print_needs(run, steps)
    for gpu in gpus or _DEFAULT_GPUS:
        _print_gpu(gpu, run, flops, name, overrides)


def _take_gpu(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without ``--gpu NAME``, and the names."""
    rest, gpus = [], []
    following = iter(arguments)
    for argument in following:
        if argument == "--gpu":
            gpus.append(next(following, ""))
        elif argument.startswith("--gpu="):
            gpus.append(argument.removeprefix("--gpu="))
        else:
            rest.append(argument)
    return rest, gpus


def _built(cfg: DictConfig) -> Any:
    """Models without weights, as :class:`~distill_tune.training.preparation.Models`."""
    import torch

    from distill_tune import models, training

    device = torch.device("cpu")
    built = training.build_models(cfg, device)
    dtype = training.find_dtype(cfg.dtype, device)
    models.freeze_all_but_adapters(built.student, training.dtype_to_train_in(cfg.optimizer, dtype, built.student))
    models.compute_in(built.student, dtype)
    return built


def _batches(plan: Any) -> list:
    """The shapes of one process's micro-batches in the first steps."""
    from distill_tune.evaluation.estimate import Batch

    steps = range(min(_STEPS, plan.steps_per_epoch))
    return [Batch(*shape) for step in steps for shape in plan.shapes(0, step)]


def _print_needs(run: _Run, steps: Any) -> float:
    """All but the GPUs; returns the FLOPs of the whole run on one process."""
    from rich.filesize import decimal

    from distill_tune.evaluation import estimate
    from distill_tune.models import computed_in

    cfg = run.cfg
    sampled = min(_STEPS, steps.plan.steps_per_epoch)
    step_flops = estimate.flops_of(run.student, run.teachers, run.batches) / sampled
    tokens = sum(sum(batch.lengths) for batch in run.batches) / sampled * run.num_processes
    print(f"steps: {steps.total_steps:,} ({cfg.epochs} x {steps.steps_per_epoch:,}), some {tokens:,.0f} tokens each")
    memory = run.memory
    print("memory of each process:" if run.num_processes > 1 else "memory:")
    for part in dataclasses.fields(memory):
        value = getattr(memory, part.name)
        if value and not isinstance(value, bool):
            print(f"  {part.name.replace('_', ' '):<20} {decimal(int(value)):>10}")
    gradients = "stay over micro-batches" if memory.gradients_stay else "come when activations have gone"
    print(f"  {'peak':<20} {decimal(int(memory.peak)):>10}   (gradients {gradients})")
    exported = sum(p.numel() for p in run.student.parameters()) * computed_in(run.student).itemsize
    checkpoint = estimate.checkpoint_bytes(cfg, run.student)
    print(f"disk: {decimal(int(checkpoint))} each checkpoint, {decimal(int(exported))} the exported model")
    everyone = step_flops * run.num_processes
    print(f"work: {everyone / 1e12:,.3g} TFLOP a step, {everyone * steps.total_steps / 1e15:,.3g} PFLOP in all")
    return step_flops * steps.total_steps


def _print_gpu(name: str, run: _Run, flops: float, config_name: str, overrides: Sequence[str]) -> None:
    from rich.filesize import decimal

    from distill_tune.training.flops import GPUS

    gpu = GPUS[name]
    available = gpu.memory - _CONTEXT
    hours = flops / (gpu.flops * _RATE) / 3600
    count = f" x {run.num_processes}" if run.num_processes > 1 else ""
    if run.memory.peak <= available:
        duration = f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:,.0f} minutes"
        print(f"{name}{count}: fits its {decimal(int(gpu.memory))}; some {duration}")
        return
    print(f"{name}{count}: does not fit its {decimal(int(gpu.memory))}; it would with")
    found = False
    for changes, peak in _smaller(run, config_name, overrides, available):
        print(f"  {' '.join(changes)}   ({decimal(int(peak))})")
        found = True
    if not found:
        print("  more processes, a larger GPU, or smaller models: no change of settings is enough")


def _smaller(
    run: _Run, config_name: str, overrides: Sequence[str], available: float
) -> Iterator[tuple[list[str], float]]:
    """Changes that fit: each alone, or, where none does alone, the shortest row of them from the cheapest on."""
    possible = _CHANGES if run.num_processes == 1 else _OF_SEVERAL
    alone = []
    for change in possible:
        changed = _with(run, config_name, overrides, change)
        if changed is not None and (peak := changed[1].memory.peak) <= available:
            alone.append((changed[0], peak))
    if alone:
        yield from alone
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
        if (peak := changed[1].memory.peak) <= available:
            yield changed[0], peak
            return


def _with(
    run: _Run, config_name: str, overrides: Sequence[str], change: Sequence[str]
) -> tuple[list[str], _Run] | None:
    """The change as overrides, and the run with it; None where it changes nothing or cannot be."""
    from distill_tune.config.components import check_components

    written = [part for one in change for part in (_half(run.cfg) if one == "half the batch" else [one])]
    if not written:
        return None
    added = [
        f"+{one}" if one[0] != "+" and one.partition("=")[0].partition(".")[0] not in run.cfg else one
        for one in written
    ]
    cfg = load_config(find_config(config_name), [*overrides, *added])
    if cfg == run.cfg or check_components(cfg):  # nothing new, or its other arguments do not suit
        return None
    batches = run.batches
    if "half the batch" in change:
        batches = [dataclasses.replace(b, lengths=_first_half(b.lengths), num_supervised=b.num_supervised // 2)
                   for b in batches]  # fmt: skip
    try:
        built = _built(cfg)
    except UserError:
        return None
    return added, _Run(cfg, built.student, list(built.teacher.models), batches, run.num_processes)


def _half(cfg: DictConfig) -> list[str]:
    accumulation = f"gradient_accumulation_steps={2 * cfg.get('gradient_accumulation_steps', 1)}"
    if cfg.batch_size is None:
        return [f"max_tokens_per_batch={cfg.max_tokens_per_batch // 2}", accumulation]
    return [f"batch_size={cfg.batch_size // 2}", accumulation] if cfg.batch_size > 1 else []


def _first_half(lengths: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(lengths)[::-2]) if len(lengths) > 1 else lengths
