"""`distill-tune plan`: what a run needs, before anyone pays for a GPU."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill_tune.cli.validate import read_arguments, require_training
from distill_tune.cli.without_weights import config_without_weights
from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.config.recipe_keys import Recipe
from distill_tune.counts import rough_duration
from distill_tune.errors import CollectedFaults, UserError
from distill_tune.sizes import binary

if TYPE_CHECKING:
    from distill_tune.cli.planned_cache import PlannedCache
    from distill_tune.cli.planned_run import PlannedRun
    from distill_tune.training.gpus import Gpu

_DESCRIPTION = """Tell the memory, the work and the hours of a run, without a GPU and without loading a weight.

  distill-tune plan [RECIPE] --config CONFIG [overrides] [--gpu NAME]
  distill-tune plan --nproc_per_node 8 kd_distributed --config CONFIG --gpu H100
  distill-tune plan teacher_cache --config CONFIG cache.kind=sampled    its disk, too

Memory is told by part and for each process, from the models' shapes and the longest rows of all the data; hours from
the rows of the first steps, at 40 % of the GPU's data-sheet rate, which a well-fed one reaches, or at 70 % of the rate
of its links, where what travels between cards of one machine, or from host memory, takes longer, or where the host does
that starts the kernels of short micro-batches. Where the run does
not fit, the cheapest changes that make it fit are named. A GPU is named in any spelling, with its form or memory
where there are several (h100, "H100 PCIe", a100-40gb, rtx4090), or a size (24GB), of which no hours are told; default:
those that are common.

Of the models' folders config.json is needed, and of one the tokenizer; of the models that the shipped configs name not
even config.json: what they are is known.
"""
CONTEXT = 1.0 * 2**30  # what CUDA's own context and the allocator's gaps take
_OF_CACHE = "teacher_cache"
DEFAULT_GPUS = ("4090", "A10", "A100", "H100", "H200")


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
    arguments, names = _take_gpus(list(options.arguments))
    recipe, name, overrides, num_processes = read_arguments(arguments)
    require_training("plan", recipe)
    faults, gpus = CollectedFaults("the command line and the config"), []
    for named in names or DEFAULT_GPUS:
        with faults:
            gpus.append(named_gpu(named))
    with faults:
        cfg = config_without_weights(recipe, name, overrides)
    faults.tell()

    from distill_tune.cli.planned_cache import PlannedCache
    from distill_tune.cli.planned_run import PlannedRun

    if recipe.stem == _OF_CACHE:
        _print_cache(PlannedCache.of(cfg, num_processes), gpus)
        return
    run = PlannedRun.of(cfg, num_processes, Recipe(recipe).is_distributed)
    _print_needs(run)
    for gpu in gpus:
        _print_gpu(gpu, run, name, overrides)


def _print_cache(run: "PlannedCache", gpus: Sequence["Gpu"]) -> None:
    """Of teacher_cache: the teacher's memory, work and hours, and the disk."""
    weights, workings = run.memory
    about, most = run.bytes_each
    print(f"memory of the teacher: {binary(weights)}, and {binary(workings)} to work with")
    of_all, each = f"{binary(most * run.num_positions)}", f"{most:.0f} bytes each"
    if most > about:
        of_all = f"{binary(about * run.num_positions)} to {of_all}"
        each = f"{about:.0f} to {each}: the fewer, the surer the teacher is"
    print(f"disk: {of_all} for {run.num_positions:,} supervised tokens of {run.num_rows:,} rows, {each}")
    if remark := run.remark:
        print(remark)
    print(f"work: {run.num_processes * run.work.teacher / 1e15:,.3g} PFLOP")
    for gpu in gpus:
        needed, available = weights + workings, gpu.memory - CONTEXT
        if (seconds := run.seconds(gpu)) is None:
            print(f"{gpu}: has no bf16; plan with dtype=fp32")
        elif needed > available:
            print(f"{gpu}: does not fit {binary(gpu.memory)}; take more processes, or teacher_offload=True")
        else:
            print(f"{gpu}: fits, {binary(needed)} of {binary(gpu.memory)}; {_told(seconds)}")


def _take_gpus(arguments: list[str]) -> tuple[list[str], list[str]]:
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


def named_gpu(name: str) -> "Gpu":
    """
    Raises:
        UserError: it is not known.
    """
    from distill_tune.training.gpus import find_gpu, gpu_names

    gpu = find_gpu(name)
    if gpu is None:
        near = did_you_mean(nearest(name, gpu_names()))
        raise UserError(
            f"--gpu {name}: not known{near or ';'} there are {', '.join(gpu_names())}, and a size in GB (--gpu 24GB)"
        )
    return gpu


def _print_needs(run: "PlannedRun") -> None:
    """All but the GPUs."""
    from distill_tune.evaluation import estimate
    from distill_tune.models import computed_in

    cfg, steps, memory = run.cfg, run.data, run.memory
    tokens = run.num_processes * sum(sum(shape.lengths) for shape in steps.sample) / steps.num_sampled
    print(
        f"steps: {steps.total:,} ({cfg.epochs} x {steps.each_epoch:,}), some {tokens:,.0f} tokens each, "
        f"{steps.longest:,} in the longest row"
    )
    print("memory of each process:" if run.num_processes > 1 else "memory:")
    for part in dataclasses.fields(memory):
        value = getattr(memory, part.name)
        if value and not isinstance(value, bool) and part.name != "host":
            print(f"  {part.name.replace('_', ' '):<20} {binary(value):>10}")
    gradients = "stay over micro-batches" if memory.gradients_stay else "come when activations have gone"
    print(f"  {'peak':<20} {binary(memory.peak):>10}   (gradients {gradients})")
    if memory.host:
        print(f"host memory: {binary(memory.host)} pinned by each process, of which each needs as much free")
    exported = sum(p.numel() for p in run.student.parameters()) * computed_in(run.student).itemsize
    print(f"disk: {binary(estimate.checkpoint_bytes(cfg, run.student))} each checkpoint, {binary(exported)} the model")
    work = run.work
    everyone = run.num_processes * (work.student + work.teacher)
    if cfg.get("rollouts") is not None:
        print("rollouts: each answer is taken to be as long as it may be; the time to write them is not counted")
    print(f"work: {everyone / steps.total / 1e12:,.3g} TFLOP a step, {everyone / 1e15:,.3g} PFLOP in all")


def _print_gpu(gpu: "Gpu", run: "PlannedRun", config_name: str, overrides: Sequence[str]) -> None:
    from distill_tune.cli.smaller import smaller

    count = f" x {run.num_processes}" if run.num_processes > 1 else ""
    seconds = run.seconds(gpu)
    if seconds is None and gpu.fp32 is not None:
        print(f"{gpu}{count}: has no bf16; plan with dtype=fp32")
        return
    available = gpu.memory - CONTEXT
    if run.memory.peak <= available:
        duration = f"; {_told(seconds)}" if seconds else ""
        print(f"{gpu}{count}: fits, {binary(run.memory.peak)} of {binary(gpu.memory)}{duration}")
        return
    print(f"{gpu}{count}: does not fit {binary(gpu.memory)}; it would with")
    found = False
    has_bf16 = gpu.bf16 is not None or gpu.fp32 is None  # of a size nothing is known
    for changes, changed in smaller(run, config_name, overrides, available, has_bf16):
        host = f", {binary(changed.memory.host)} pinned in host memory" if changed.memory.host else ""
        its = changed.seconds(gpu)
        duration = f", {_told(its)}" if its else ""
        print(f"  {' '.join(changes)}   ({binary(changed.memory.peak)}{duration}{host})")
        found = True
    if not found:
        print("  more processes, a larger GPU, or smaller models: no change of settings is enough")


def _told(seconds: Any) -> str:
    """A duration, and what of it is waiting."""
    duration = f"some {rough_duration(seconds.total)}" if seconds.total >= 1 else "less than a second"
    if seconds.total == seconds.products:
        return duration
    share = f"{duration}, {1 - seconds.products / seconds.total:.0%} of it"
    if seconds.host == seconds.total:
        return f"{share} what the host takes to start kernels (more rows in a micro-batch, compile=True: less)"
    return f"{share} waiting for {'host memory' if seconds.from_host == seconds.total else 'the other cards'}"
