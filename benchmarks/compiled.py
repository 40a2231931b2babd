"""What compile=True is worth: a config's steps eager and compiled in turn, in one process, on the same rows.

    python benchmarks/compiled.py [--config tiny] [--steps 40] [key=value ...]

A step is teacher, student, loss and gradient, without the optimizer; every step has rows of new lengths. The ratio is
the median of those of each pair. "Compiling" is what the first three compiled steps took beyond later ones; what an
earlier run left in PyTorch's cache takes less.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from omegaconf import DictConfig, OmegaConf

from distill_tune import config, data, losses, models, training
from distill_tune.config.files import find_config
from distill_tune.config.load import load_config

from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    cfg = OmegaConf.merge(load_config(find_config(options.config)), OmegaConf.from_dotlist(options.overrides))
    device = training.find_device(cfg.device)
    built = training.build_models(cfg, device)
    plan = training.plan_steps(cfg, built, seed=0).plan
    ways = {compile: step_of(cfg, device, compile) for compile in (False, True)}
    seconds: dict[bool, list[float]] = {compile: [] for compile in ways}
    for step in range(WARM_UP + options.steps):
        batches = plan.micro_batches(*divmod(step, plan.steps_per_epoch))
        found = {}
        for compile in sorted(ways, reverse=bool(step % 2)):
            started = time.perf_counter()
            found[compile] = ways[compile](batches)
            seconds[compile].append(time.perf_counter() - started)
        assert abs(found[True] / found[False] - 1) < 1e-2, found
    eager, compiled = (seconds[compile][WARM_UP:] for compile in (False, True))
    ratio = statistics.median(one / other for one, other in zip(compiled, eager, strict=True))
    compiling = sum(seconds[True][:WARM_UP]) - WARM_UP * statistics.median(compiled)
    named = " ".join([options.config, *options.overrides])
    print("| config | eager, seconds a step | compiled | ratio | compiling, seconds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    medians = f"{statistics.median(eager):.3f} | {statistics.median(compiled):.3f}"
    print(f"| {named} | {medians} | {ratio:.2f} | {compiling:.0f} |")


def step_of(cfg: DictConfig, device: torch.device, compile: bool) -> Callable[[list[data.Batch]], float]:
    """The gradient of a step as kd_single_device makes it; its loss."""
    torch.manual_seed(0)
    student, checkpoint, _, teacher, _, common = training.build_models(cfg, device)
    dtype = training.find_dtype(cfg.dtype, device)
    divergence = config.build("kd_loss", cfg.get("kd_loss"), losses.ForwardKL())
    models.freeze_all_but_adapters(student, training.dtype_to_train_in(cfg.optimizer, dtype, student))
    models.compute_in(student, dtype)
    models.load_weights(student, checkpoint, device)
    head = models.take_output_head(student)
    if cfg.get("enable_activation_checkpointing", False):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    if compile:
        models.compile_layers(student)
    teacher.load(student, device, compile=compile)
    student.train()

    def step(batches: list[data.Batch]) -> float:
        total, num_tokens = torch.zeros((), device=device), data.num_supervised(batches)
        for batch in batches:
            batch = batch.to(device)
            signal = teacher(batch)
            hidden, _ = models.hidden_states(student, batch.tokens, batch.attention())
            loss = losses.distillation_loss(
                hidden[0, batch.supervised_positions],
                head.projection_for_loss(),
                batch.targets[0, batch.supervised_positions],
                signal,
                kd_ratio=cfg.kd_ratio,
                common_vocab_size=common,
                divergence=divergence,
            ).loss
            (loss / num_tokens).backward()
            total += loss.detach()
        student.zero_grad(set_to_none=True)
        return total.item() / num_tokens

    return step


if __name__ == "__main__":
    main()
