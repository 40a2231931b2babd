"""A training step with a record of the teacher, beside plain fine-tuning and the live teacher; how far gradients turn.

    python benchmarks/sparse.py [--steps 12] [--only wide,recipe,angles]
    python benchmarks/sparse.py --device cuda --only large

``recipe``: whole steps of ``kd_single_device --config tiny``, the caches read from the disk: a process for each way,
which takes a step when it is its turn. Caches are made first.

``wide`` and ``tiny``: the models of that case of cases.py with random weights, LoRA of rank 8, fp32, AdamW, 4 rows of
256 tokens, 60 % of them supervised. All ways take each step in turn on the same rows; ratios are medians over the steps
of what each takes beside plain fine-tuning, by the clock and in seconds of the CPU, which a busy machine disturbs less.
Records are made beforehand and lie in memory.

``large``: a step of the models of gpu_cases.py, 1B with LoRA beside 8B, vocabulary 128,256, four rows of 2,048 tokens,
all supervised, bf16, layers checkpointed; records are made up, and decoded in each step. Without ``--device cuda``
small models stand in.

``angles``: on the demo's models and held-out rows, the angle between a record's gradient of forward KL and that of the
teacher's whole distribution: for the logits of one token (its mean), and for the output layer's weight, summed over all
rows. Records draw or keep so many tokens, or are the teacher's hidden states in bfloat16.
"""

import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpu_step
import torch
from cases import CASES, Case, Shape
from omegaconf import OmegaConf

from distill_tune import config, data, losses, models, teachers, training
from distill_tune.cache import SampledEncoding, TopEncoding
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config
from distill_tune.data.batch import joined

from torchtune.models.llama3._component_builders import llama3, lora_llama3
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing

HERE = Path(__file__).resolve().parent
HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 40, "held_out": True, "min_characters": 250}
ROWS, LENGTH, SUPERVISED = 4, 256, 0.6
WARM_UP = 2
TOKENS = 50  # drawn, or kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", default="tiny,wide,recipe,angles")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.only.split(","):
        if name == "angles":
            for line in lines_of_angles():
                print(line, flush=True)
        elif name == "recipe":
            print_recipe(options.steps)
        elif name == "large":
            print_seconds("large", large_ways(torch.device(options.device)), options.steps)
        else:
            print_seconds(f"{name}, vocabulary {CASES[name].vocab_size}", ways_of(CASES[name]), options.steps)


# What takes a step, and tells the seconds that it took by the clock and of the CPU.
Way = Callable[[], tuple[float, float]]


def print_recipe(steps: int) -> None:
    rows = f"dataset.num_rows={16 * (WARM_UP + steps + 1)}"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ways = {"fine-tuning": stack.enter_context(run_in_turns(folder, rows, "kd_ratio=0"))}
        for kind in ("sampled", "top_k", "hidden"):
            cache = f"{folder}/{kind}"
            recipe("teacher_cache", rows, f"cache.kind={kind}", f"output_dir={cache}", stdout=subprocess.DEVNULL).wait()
            component = f"{{_component_: distill_tune.teachers.Cached, path: {cache}}}"
            ways[kind] = stack.enter_context(run_in_turns(folder, rows, f"teacher_model={component}"))
        ways["live teacher"] = stack.enter_context(run_in_turns(folder, rows))
        print_table("recipe", ways, steps)


def recipe(name: str, *settings: str, **options: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    command = [sys.executable, "-m", "distill_tune", "run", name, "--config", "tiny", *settings]
    return subprocess.Popen(command, env=environment, **options)


@contextlib.contextmanager
def run_in_turns(folder: str, *settings: str) -> Iterator[Way]:
    """A run that takes a step at each call."""
    (asked, ask), (hear, told) = os.pipe(), os.pipe()
    logger = f"metric_logger={{_component_: components.turns, asked: {asked}, told: {told}}}"
    out = f"output_dir={tempfile.mkdtemp(dir=folder)}"
    process = recipe("kd_single_device", out, logger, *settings, pass_fds=(asked, told), stdout=subprocess.DEVNULL)
    os.close(asked)
    os.close(told)
    with os.fdopen(hear) as answers:

        def step() -> tuple[float, float]:
            os.write(ask, b".")
            by_clock, of_cpu = json.loads(answers.readline())
            return by_clock, of_cpu

        try:
            yield step
        finally:
            process.kill()
            process.wait()
            os.close(ask)


def print_seconds(name: str, steps_of: dict[str, Callable[[], None]], steps: int) -> None:
    def timed(step: Callable[[], None]) -> tuple[float, float]:
        started, of_cpu = time.perf_counter(), time.process_time()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started, time.process_time() - of_cpu

    print_table(name, {way: functools.partial(timed, step) for way, step in steps_of.items()}, steps)


def print_table(name: str, ways: dict[str, Way], steps: int) -> None:
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(WARM_UP + steps):
        order = list(ways)
        for way in order[number % len(order) :] + order[: number % len(order)]:
            taken[way].append(ways[way]())
    print(f"| {name} | seconds a step | beside fine-tuning | in CPU seconds |")
    print("| --- | ---: | ---: | ---: |")
    plain = taken["fine-tuning"][WARM_UP:]
    for name, of_way in taken.items():
        pairs = list(zip(of_way[WARM_UP:], plain, strict=True))
        ratios = [statistics.median(mine[clock] / other[clock] for mine, other in pairs) for clock in (0, 1)]
        middle = statistics.median(mine[0] for mine, _ in pairs)
        print(f"| {name} | {middle:.3f} | {ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)


def ways_of(case: Case) -> dict[str, Callable[[], None]]:
    """What each takes a step with."""
    torch.manual_seed(0)
    student = model_of(case.student, case.vocab_size, lora=True)
    head = models.take_output_head(student)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    teacher = model_of(case.teacher, case.vocab_size, lora=False).eval()
    teacher_head = models.take_output_head(teacher)
    tokens = torch.randint(case.vocab_size, (ROWS, LENGTH))
    supervised = torch.rand(ROWS, LENGTH) < SUPERVISED
    targets = torch.randint(case.vocab_size, (int(supervised.sum()),))

    @torch.inference_mode()
    def live() -> losses.HiddenStates:
        return losses.HiddenStates(teacher(tokens)[supervised], teacher_head.projection_for_loss())

    signal = live()
    logits = signal.logits(0, len(targets), signal.memory(len(targets))).clone()
    records: dict[str, tuple[losses.SparseSignal, float]] = {}
    for temperature in (1.0, 2.0):
        records[f"{TOKENS} drawn, T = {temperature:g}"] = (
            losses.SampledTokens.drawn(logits, TOKENS, temperature),
            temperature,
        )
        records[f"top {TOKENS}, T = {temperature:g}"] = losses.TopTokens.of(logits, TOKENS, temperature), temperature
    del logits

    def step(signal: Callable[[], object], kd_ratio: float, temperature: float) -> None:
        of_teacher = signal()
        sums = losses.distillation_loss(
            student(tokens)[supervised],
            head.projection_for_loss(),
            targets,
            of_teacher,
            kd_ratio=kd_ratio,
            temperature=temperature,
        )
        (sums.loss / len(targets)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {
        "fine-tuning": lambda: step(lambda: None, 0.0, 1.0),
        **{name: lambda of=record: step(lambda: of[0], 0.5, of[1]) for name, record in records.items()},
        "live teacher, T = 1": lambda: step(live, 0.5, 1.0),
        "live teacher, T = 2": lambda: step(live, 0.5, 2.0),
    }


def large_ways(device: torch.device) -> dict[str, Callable[[], None]]:
    """As :func:`ways_of`, of the models of a card."""
    is_small = device.type != "cuda"
    dtype = torch.float32 if is_small else torch.bfloat16
    torch.manual_seed(0)
    case = gpu_step.case_of("long_checkpointed", is_small)
    student, teacher_model = gpu_step.on_meta("ours", case, is_small, dtype)
    head, teacher = models.take_output_head(student), teachers.LiveTeacher(teacher_model)
    set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    gpu_step.fill(student, device)
    gpu_step.fill(teacher_model, device)
    v = student.tok_embeddings.num_embeddings
    batch = joined(gpu_step.rows_of(case, v)).to(device)
    targets = batch.targets[0, batch.supervised_positions]
    optimizer = training.build_optimizer(OmegaConf.create(gpu_step.OPTIMIZER), student.parameters())
    # Which tokens they are costs nothing, how many there are does: 12, as large models give.
    ids = (targets[:, None] + torch.arange(TOKENS, device=device) * 307) % v
    entropy = torch.full((len(ids),), 2.0, device=device)
    weights = torch.full((len(ids), 12), 4 / TOKENS, device=device)
    log_probs, log_rest = torch.full(ids.shape, -4.5, device=device), torch.full_like(entropy, -0.82)
    ways: dict[str, Callable[[], None]] = {}

    def step(signal: Callable[[], object], kd_ratio: float, temperature: float) -> None:
        of_teacher = signal()
        hidden = student(batch.tokens, **batch.attention())[0, batch.supervised_positions]
        sums = losses.distillation_loss(
            hidden, head.projection_for_loss(), targets, of_teacher, kd_ratio=kd_ratio, temperature=temperature
        )
        (sums.loss / len(targets)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    ways["fine-tuning"] = lambda: step(lambda: None, 0.0, 1.0)
    for t in (1.0, 2.0):
        drawn = losses.SampledTokens(ids[:, :12], weights, entropy, t, v)
        top = losses.TopTokens(ids, log_probs, log_rest, t, v)
        for name, record, encoding in (
            ("12 of 50 drawn", drawn, SampledEncoding(v, TOKENS, t)),
            (f"top {TOKENS}", top, TopEncoding(v, TOKENS, t)),
        ):
            read = functools.partial(as_read, encoding, encoding.encode(record, batch.num_supervised), device)
            ways[f"{name}, T = {t:g}"] = functools.partial(step, read, 0.5, t)
    hidden = teacher(batch)
    ways["hidden states, T = 1"] = lambda: step(lambda: hidden, 0.5, 1.0)
    ways["live teacher, T = 1"] = lambda: step(lambda: teacher(batch), 0.5, 1.0)
    return ways


def as_read(encoding: SampledEncoding | TopEncoding, rows: list[bytes], device: torch.device) -> losses.SparseSignal:
    return encoding.decode(rows).to(device)


def model_of(shape: Shape, vocab_size: int, lora: bool) -> torch.nn.Module:
    sizes = {
        "vocab_size": vocab_size,
        "num_layers": shape.layers,
        "num_heads": shape.heads,
        "num_kv_heads": shape.heads // 2,
        "embed_dim": shape.width,
        "max_seq_len": 4096,
        "intermediate_dim": shape.intermediate,
    }
    if not lora:
        return llama3(**sizes)
    projections = ["q_proj", "k_proj", "v_proj", "output_proj"]
    model = lora_llama3(projections, apply_lora_to_mlp=True, lora_rank=8, lora_alpha=16, **sizes)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    return model


# Makes a record of the teacher's hidden states and logits.
Make = Callable[[losses.HiddenStates, torch.Tensor, torch.Generator], losses.SparseSignal | losses.HiddenStates]


def lines_of_angles() -> Iterator[str]:
    """A table in Markdown."""
    ways: dict[str, Make] = {}
    for count in (3, 12, 24, 50):
        ways[f"{count} drawn"] = lambda _, logits, g, m=count: losses.SampledTokens.drawn(logits, m, generator=g)
    for count in (4, 12, 50):
        ways[f"top {count} and the rest"] = lambda _, logits, __, k=count: losses.TopTokens.of(logits, k)
    ways["hidden states"] = lambda of, _, __: losses.HiddenStates(of.hidden.bfloat16(), of.projection)
    yield "| record | distinct tokens | degrees, of a token | degrees, of all rows | value beside the whole one |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, make in ways.items():
        yield f"| {name} | " + angle_of(make) + " |"


def angle_of(make: Make) -> str:
    generator = torch.Generator().manual_seed(0)
    distinct, of_token, values, wanted_values = [], [], 0.0, 0.0
    of_all: tuple[torch.Tensor, ...] = (torch.zeros(()), torch.zeros(()))
    for hidden, weight, of_teacher, logits in held_out():
        record = make(of_teacher, logits, generator)
        value, gradient, of_weight = gradients(hidden, weight, record)
        wanted_value, wanted, of_weight_wanted = gradients(hidden, weight, losses.DenseLogits(logits))
        if not isinstance(record, losses.HiddenStates):
            distinct.append(record.is_token.sum(-1).float())
        of_token.append(degrees(gradient, wanted))
        of_all = of_all[0] + of_weight, of_all[1] + of_weight_wanted
        values, wanted_values = values + value, wanted_values + wanted_value
    mean = [f"{torch.cat(parts).mean():.1f}" if parts else "all" for parts in (distinct, of_token)]
    turned = degrees(*(total.flatten()[None] for total in of_all)).item()
    return " | ".join([*mean, f"{turned:.2f}", f"{values / wanted_values:.4f}"])


@functools.cache
def held_out() -> list[tuple[torch.Tensor, torch.Tensor, losses.HiddenStates, torch.Tensor]]:
    """Of each batch (the student's hidden states ``[n, d]``, its output layer ``[v, d]``, the teacher's hidden states,
    its logits ``[n, v]``)."""
    cfg = load_config(find_config("tiny"))
    rows, _ = data.prepare_rows(OmegaConf.create(HELD_OUT), config.instantiate(cfg.tokenizer), cfg.tokenizer)
    signals = []
    for name in ("student", "teacher"):
        component = OmegaConf.create(
            {"_component_": "distill_tune.models.from_hf", "path": str(demo_model_folder(name))}
        )
        model = teachers.build_teacher(component, dtype=torch.float32)
        model.load(None, torch.device("cpu"))
        signals.append(model)
    found = []
    for batch in data.StepPlan(rows, batch_size=8, shuffle=False).epoch():
        student, teacher = (model(batch) for model in signals)
        n = len(student.hidden)
        logits = teacher.logits(0, n, teacher.memory(n)).clone()
        found.append((student.hidden.clone(), student.projection.weight.detach(), teacher, logits))
    return found


def gradients(
    hidden: torch.Tensor, weight: torch.Tensor, signal: losses.TeacherSignal | losses.SparseSignal
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Forward KL, its gradient for the student's logits ``[n, v]``, and for its output layer ``[v, d]``."""
    logits = (hidden @ weight.T).requires_grad_()
    as_they_are = losses.AutogradProjection(lambda x: x, weight.shape[0])
    sums = losses.distillation_loss(
        logits, as_they_are, torch.zeros(len(logits), dtype=torch.int64), signal, kd_ratio=1
    )
    (gradient,) = torch.autograd.grad(sums.loss, logits)
    return sums.kd.item(), gradient, gradient.T @ hidden


def degrees(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Between rows, ``[n]``."""
    return torch.nn.functional.cosine_similarity(one, other, dim=-1).clamp(-1, 1).acos() * (180 / math.pi)


if __name__ == "__main__":
    main()
