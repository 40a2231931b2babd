"""A step of benchmarks/gpu.py: two models with random weights, ours or torchtune's loss, its time and its memory."""

import statistics
import time

import torch
from gpu_cases import CASES, LORA, SMALL, STUDENT, TEACHER
from omegaconf import OmegaConf

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import config, losses, models, teachers, training
from distill_tune.data.batch import joined
from distill_tune.data.shape import Shape
from distill_tune.evaluation import estimate
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.models.loading import own_part
from distill_tune.training.flops import ModelFlops

from torchtune.models.llama3_1 import llama3_1
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss, ForwardKLWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import set_activation_checkpointing, set_default_dtype

OPTIMIZER = {"_component_": "torch.optim.AdamW", "lr": 1e-4}


def on_meta(tool, case, small, dtype):
    """Student and teacher without weights, with their final dtypes and ``requires_grad``."""
    student_shape, teacher_shape = (SMALL, SMALL) if small else (STUDENT, TEACHER)
    with set_default_dtype(dtype), torch.device("meta"):
        student = llama3_2(**student_shape) if case.get("full") else lora_llama3_2(
            **LORA, lora_alpha=128, **student_shape
        )  # fmt: skip
        teacher = llama3_1(**teacher_shape).requires_grad_(False)
    if tool == "ours":
        models.freeze_all_but_adapters(student)
        models.compute_in(student, dtype)
    elif not case.get("full"):
        set_trainable_params(student, get_adapter_params(student))
    return student, teacher


@torch.no_grad()
def fill(model, device, quantizer=None):
    """Random weights for a model that is on the meta device; its layers, one after another, quantised."""
    for name, module in model.named_children():
        if name != "layers":
            _fill(module, device)
    for layer in model.layers:
        _fill(layer, device)
        if quantizer is not None:
            from torchao.quantization import quantize_

            quantize_(layer, config.instantiate(OmegaConf.create(quantizer)), device=device)
    models.fill_rotary_tables(model, device)


def _fill(module, device):
    module.to_empty(device=device)
    for parameter in module.parameters():
        own = own_part(parameter)
        torch.nn.init.normal_(own, std=0.02) if parameter.ndim == 2 else torch.nn.init.ones_(own)


def rows_of(case, vocab_size):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in case["lengths"]:
        tokens = torch.randint(3, vocab_size, (length,), generator=generator, dtype=torch.int32)
        labels = tokens.clone()
        labels[: int(length * (1 - case["supervised"]))] = -100
        rows.append((tokens, labels))
    return rows


def ours(case, student, teacher_model, rows, device, mesh=None):
    """The loss of a step; models on the meta device, which it compiles, shards and fills."""
    head, teacher = models.take_output_head(student), teachers.LiveTeacher(teacher_model)
    if case.get("checkpointed"):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    if case.get("compile"):
        models.compile_layers(student)
        models.compile_layers(teacher_model)
    if mesh is not None:
        training.shard_student(student, mesh, dtype=models.computed_in(student))
        training.shard_teacher(teacher_model, mesh)
    fill(student, device)
    fill(teacher_model, device, case.get("quantizer"))

    def loss():
        sums, num_tokens = sums_of(student, head, teacher, joined(rows))
        return sums.loss / num_tokens

    return loss


def sums_of(student, head, teacher, batch):
    """A micro-batch's losses as both recipes make them, and its supervised tokens."""
    batch = batch.to(student.tok_embeddings.weight.device)
    signal = teacher(batch)
    hidden = student(batch.tokens, **batch.attention())[0, batch.supervised_positions]
    head.gather()
    targets = batch.targets[0, batch.supervised_positions]
    sums = losses.distillation_loss(hidden, head.projection_for_loss(), targets, signal, kd_ratio=0.5)
    teacher.release()
    return sums, len(targets)


def torchtunes(case, student, teacher, rows, device):
    teacher.eval()
    for model in (student, teacher):
        fill(model, device)
        model.set_num_output_chunks(8)
    if case.get("checkpointed"):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad([t for t, _ in rows], batch_first=True).long().to(device)
    labels = pad([x for _, x in rows], batch_first=True, padding_value=-100).long().to(device)
    labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
    ce, kd = CEWithChunkedOutputLoss(), ForwardKLWithChunkedOutputLoss()

    def loss():
        logits = student(tokens)
        with torch.no_grad():
            teacher_logits = teacher(tokens)
        return 0.5 * ce(logits, labels) + 0.5 * kd(logits, teacher_logits, labels)

    return loss


def measure(tool, name, device_name, small, sharded=False):
    """A case's seconds a step, FLOPs, peak memory, and what `plan` expects it to be; each of one process."""
    case, dtype = case_of(name, small), torch.float32 if device_name == "cpu" else torch.bfloat16
    device = training.init_distributed(device_name) if sharded else training.find_device(device_name)
    mesh = training.device_mesh(device, 1) if sharded else None
    steps, warm_up = (2, 1) if small else (12, 4)
    expected = expected_bytes(tool, case, device, small, dtype, training.num_ranks() if sharded else None)
    torch.randn(800, 800) @ torch.randn(800, 800)  # threads and their memory
    with PeakMemory(device) as peak:
        torch.manual_seed(0)
        student, teacher = on_meta(tool, case, small, dtype)
        flops = sum(
            ModelFlops.of_model(model, trains).of(shape_of(case))
            for model, trains in ((student, True), (teacher, False))
        )
        rows = rows_of(case, student.tok_embeddings.num_embeddings)
        if tool == "ours":
            loss = ours(case, student, teacher, rows, device, mesh)
        else:
            loss = torchtunes(case, student, teacher, rows, device)
        optimizer = training.build_optimizer(OmegaConf.create(OPTIMIZER), student.parameters())
        seconds = []
        for _ in range(steps):
            synchronise(device)
            started = time.perf_counter()
            value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    found = {
        "seconds": statistics.median(seconds[warm_up:]),
        "tokens": sum(case["lengths"]),
        "flops": flops,
        "peak_bytes": peak.bytes,
        "expected_bytes": expected,
        "loss": value.item(),
        "ranks": training.num_ranks(),
    }
    del student, teacher, loss, optimizer, value
    return found | {"rate": product_rate(device, dtype, small)}


def case_of(name, small):
    case = CASES[name]
    return case | {"lengths": [max(2, length // 16) for length in case["lengths"]]} if small else case


def expected_bytes(tool, case, device, small, dtype, shards=None):
    """What `distill-tune plan` says of a process's peak."""
    student, teacher = on_meta(tool, case, small, dtype)
    cfg = {
        "device": device.type,
        "optimizer": OPTIMIZER,
        "enable_activation_checkpointing": case.get("checkpointed", False),
        "teacher_quantizer": case.get("quantizer"),
    }
    live = teachers.LiveTeacher(teacher)
    return estimate.memory_of(OmegaConf.create(cfg), student, live, shape_of(case), shards).peak


def shape_of(case):
    supervised = tuple(int((labels[1:] != -100).sum()) for _, labels in rows_of(case, 512))
    return Shape(tuple(case["lengths"]), supervised)


def product_rate(device, dtype, small):
    """FLOP/s of one large product."""
    n = 256 if small else 8192
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(3):
        a @ b
    synchronise(device)
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    synchronise(device)
    return 10 * 2 * n**3 / (time.perf_counter() - started)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
