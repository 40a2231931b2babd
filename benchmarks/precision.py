"""What parameters held in bf16 cost a small learning rate: the demo's student, fine-tuned in several precisions.

    python benchmarks/precision.py [--steps 150] [--batch-size 4] [--only "fp32;dtype=bf16"]

Every parameter at 2e-5, then LoRA at 3e-4; AdamW, a constant learning rate, the same rows, no teacher. "Held in bf16"
is bf16 throughout: parameters, gradients, both moments. "Moved" is the share of the exported weights that are others in
bf16 than the base's; "distance" how far they are from the fp32 run's, by how far that one went.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file

from distill_tune import config, data, losses, models, training
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config

HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 100, "held_out": True, "min_characters": 250}
EVERY = 50  # steps between two looks at the held-out rows


@dataclasses.dataclass(frozen=True)
class Run:
    dtype: torch.dtype
    config: str = "tiny"
    lr: float = 2e-5
    optimizer: dict = dataclasses.field(default_factory=lambda: {"_component_": "torch.optim.AdamW"})
    held_in_bf16: bool = False


STOCHASTIC = {"_component_": "torchao.optim.AdamW8bit", "bf16_stochastic_round": True}
RUNS = {
    "fp32": Run(torch.float32),
    "dtype=bf16": Run(torch.bfloat16),
    "AdamW8bit, stochastic rounding": Run(torch.bfloat16, optimizer=STOCHASTIC),
    "held in bf16": Run(torch.bfloat16, held_in_bf16=True),
    "LoRA, fp32": Run(torch.float32, "tiny_lora", 3e-4),
    "LoRA, dtype=bf16": Run(torch.bfloat16, "tiny_lora", 3e-4),
    "LoRA, held in bf16": Run(torch.bfloat16, "tiny_lora", 3e-4, held_in_bf16=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--only", default="", help="names of runs, with semicolons")
    options = parser.parse_args()
    base = load_file(demo_model_folder("student") / "model.safetensors")
    base = {name: weight.float() for name, weight in base.items()}
    steps = range(0, options.steps + 1, EVERY)
    print("| run | " + " | ".join(f"held out, step {step}" for step in steps), end=" | ")
    print("moved | distance |\n| --- |" + " ---: |" * (len(steps) + 2))
    measure: dict[str, torch.Tensor] = {}
    for name in [name for name in options.only.split(";") if name] or RUNS:
        run = RUNS[name]
        found, weights = train(run, options.steps, options.batch_size)
        if run.dtype == torch.float32:
            measure = weights
        moved = sum((weights[key].bfloat16() != base[key].bfloat16()).sum().item() for key in base)
        share = moved / sum(weight.numel() for weight in base.values())
        off = distance(weights, measure) / distance(measure, base) if measure else float("nan")
        losses_told = " | ".join(f"{value:.4f}" for value in found)
        print(f"| {name} | {losses_told} | {share:.1%} | {off:.3f} |", flush=True)


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return torch.stack([(some[name] - others[name]).norm() for name in others]).norm().item()


def train(run: Run, num_steps: int, batch_size: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Held-out cross-entropies, and the exported weights in fp32."""
    cfg = load_config(find_config(run.config))
    tokenizer = config.instantiate(cfg.tokenizer)
    plans = []
    for dataset, settings in ((cfg.dataset, {"seed": 0, "batch_size": batch_size}), (HELD_OUT, {"batch_size": 16})):
        rows, _ = data.prepare_rows(OmegaConf.create(dataset), tokenizer, cfg.tokenizer)
        plans.append(data.StepPlan(rows, shuffle=dataset is not HELD_OUT, **settings))
    plan, held_out = plans
    component = OmegaConf.create(run.optimizer | {"lr": run.lr, "weight_decay": cfg.optimizer.weight_decay})

    torch.manual_seed(0)
    student, checkpoint = build(run, cfg, component)
    head = models.take_output_head(student)
    optimizer = training.build_optimizer(component, student.parameters())
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]

    def cross_entropy(batch: data.Batch) -> torch.Tensor:
        hidden, _ = models.hidden_states(student, batch.tokens, batch.attention())
        supervised = batch.supervised_positions
        return losses.distillation_loss(
            hidden[0, supervised], head.projection_for_loss(), batch.targets[0, supervised]
        ).loss

    @torch.no_grad()
    def on_held_out() -> float:
        batches = list(held_out.epoch())
        return sum(cross_entropy(batch).item() for batch in batches) / data.num_supervised(batches)

    found = [on_held_out()]
    for step in range(num_steps):
        (batch,) = plan.micro_batches(*divmod(step, plan.steps_per_epoch))
        (cross_entropy(batch) / data.num_supervised([batch])).backward()
        torch.nn.utils.clip_grad_norm_(trained, cfg.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % EVERY == 0:
            found.append(on_held_out())
    with tempfile.TemporaryDirectory() as folder:
        training.export_model(student, checkpoint, Path(folder) / "model", torch.float32)
        return found, load_file(Path(folder) / "model" / "model.safetensors")


def build(run: Run, cfg: DictConfig, component: DictConfig) -> tuple[torch.nn.Module, models.Checkpoint]:
    """The student as kd_single_device builds it, or held in bf16 altogether."""
    checkpoint = models.open_checkpoint("model", cfg.model, cfg.checkpointer)
    student = models.checked_on_meta("model", cfg.model, checkpoint, run.dtype)
    models.freeze_all_but_adapters(student, training.dtype_to_train_in(component, run.dtype, student))
    if run.held_in_bf16:
        student.to(torch.bfloat16)
    else:
        models.compute_in(student, run.dtype)
    models.load_weights(student, checkpoint, torch.device("cpu"))
    return student, checkpoint


if __name__ == "__main__":
    main()
