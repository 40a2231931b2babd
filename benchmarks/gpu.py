"""A 1B-shaped student and an 8B-shaped teacher with random weights on one GPU in bf16: steps, share of peak, memory.

    python benchmarks/gpu.py                       every case below, each in a fresh process
    python benchmarks/gpu.py --against torchtune   and torchtune's step on the same rows
    python benchmarks/gpu.py --device cpu --small  the same code on tiny shapes: does it run?

Needs PyTorch 2.11 or newer, Triton, and torchtune, torchao and omegaconf, which are pure Python where they matter.
torchtune's step is its recipe's: padded rows, both full logits in eight chunks, its two losses, adapters in bf16, where
ours are in fp32.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import losses, models, teachers, training
from distill_tune.data.batch import joined
from distill_tune.training.flops import ModelFlops

from torchtune.models.llama3_1 import llama3_1
from torchtune.models.llama3_2 import lora_llama3_2
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.modules.loss import CEWithChunkedOutputLoss, ForwardKLWithChunkedOutputLoss
from torchtune.modules.peft import get_adapter_params, set_trainable_params
from torchtune.training import set_activation_checkpointing

STUDENT = {
    "vocab_size": 128_256,
    "num_layers": 16,
    "num_heads": 32,
    "num_kv_heads": 8,
    "embed_dim": 2048,
    "intermediate_dim": 8192,
    "max_seq_len": 8192,
}
TEACHER = {**STUDENT, "num_layers": 32, "embed_dim": 4096, "intermediate_dim": 14336}
SMALL = {"vocab_size": 512, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 64, "max_seq_len": 512}
LORA = {"lora_attn_modules": ["q_proj", "v_proj", "output_proj"], "apply_lora_to_mlp": True, "lora_rank": 64}
STEPS, WARM_UP = 12, 4

# Rows of one length, and rows of alpaca's lengths and share of prompts: how batches are cut, what is checkpointed.
CASES = {
    "long": {"lengths": [2048] * 4, "supervised": 1.0},
    "long_checkpointed": {"lengths": [2048] * 4, "supervised": 1.0, "checkpointed": True},
    "long_int8": {"lengths": [2048] * 2, "supervised": 1.0, "checkpointed": True, "quantizer": "Int8WeightOnlyConfig"},
    "long_int4": {"lengths": [2048] * 2, "supervised": 1.0, "checkpointed": True, "quantizer": "Int4WeightOnlyConfig"},
    "long_compiled": {"lengths": [2048] * 4, "supervised": 1.0, "compile": True},
    "alpaca": {"lengths": [55, 380, 120, 260, 90, 510, 33, 201], "supervised": 0.7},
}


def models_of(tool, small, device, dtype):
    student_shape, teacher_shape = (SMALL | {"intermediate_dim": 128},) * 2 if small else (STUDENT, TEACHER)
    with training_dtype(dtype), torch.device(device):
        student = lora_llama3_2(**LORA, lora_alpha=128, **student_shape)
        teacher = llama3_1(**teacher_shape)
    for model in (student, teacher):
        for p in model.parameters():
            if p.ndim == 2:
                torch.nn.init.normal_(p, std=0.02)
    if tool == "ours":
        models.freeze_all_but_adapters(student)
        models.compute_in(student, dtype)
    else:
        set_trainable_params(student, get_adapter_params(student))
    return student, teacher


def training_dtype(dtype):
    from torchtune.training import set_default_dtype

    return set_default_dtype(dtype)


def rows_of(case, vocab_size):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in case["lengths"]:
        tokens = torch.randint(3, vocab_size, (length,), generator=generator, dtype=torch.int32)
        labels = tokens.clone()
        labels[: int(length * (1 - case["supervised"]))] = -100
        rows.append((tokens, labels))
    return rows


def ours(case, student, teacher_model, rows, device):
    head = models.take_output_head(student)
    if "quantizer" in case:
        from torchao import quantization

        quantization.quantize_(teacher_model.layers, getattr(quantization, case["quantizer"])())
    teacher = teachers.LiveTeacher(teacher_model)
    if case.get("checkpointed"):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    if case.get("compile"):
        from torchtune.training import compile_model

        compile_model(student, verbose=False)
        compile_model(teacher_model, verbose=False)

    def loss():
        batch = joined(rows).to(device)
        attention = batch.attention()
        signal = teacher(batch)
        hidden = student(batch.tokens, **attention)[0, batch.supervised]
        targets = batch.targets[0, batch.supervised]
        sums = losses.distillation_loss(hidden, head.projection_for_loss(), targets, signal, kd_ratio=0.5)
        return sums.loss / len(targets)

    return loss


def torchtunes(case, student, teacher, rows, device):
    teacher.requires_grad_(False).eval()
    for model in (student, teacher):
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


def measure(tool, name, device, small):
    case = CASES[name]
    dtype = torch.bfloat16
    if small:
        case = case | {"lengths": [max(2, length // 16) for length in case["lengths"]]}
    student, teacher = models_of(tool, small, device, dtype)
    flops = sum(
        ModelFlops.of(model, trains).of_step(case["lengths"], case["supervised"] * sum(case["lengths"]))
        for model, trains in ((student, True), (teacher.requires_grad_(False), False))
    )
    rows = rows_of(case, student.tok_embeddings.num_embeddings)
    loss = {"ours": ours, "torchtune": torchtunes}[tool](case, student, teacher, rows, device)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=1e-4, fused=True)
    seconds = []
    for _ in range(STEPS):
        synchronise(device)
        started = time.perf_counter()
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    peak = training.peak_memory_bytes(torch.device(device))
    found = {"seconds": statistics.median(seconds[WARM_UP:]), "flops": flops, "peak_bytes": peak, "loss": value.item()}
    print(json.dumps(found | {"tokens": sum(case["lengths"]), "rate": product_rate(device, dtype, small)}))


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
    if device == "cuda":
        torch.cuda.synchronize()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="", help="torchtune")
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--in-this-process", metavar="TOOL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        measure(options.in_this_process, options.case, options.device, options.small)
        return
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    print("| case | tool | seconds a step | tokens/s | TFLOP/s | share of a product's rate | peak memory | loss |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in options.case.split(","):
        for tool in ["ours", *(["torchtune"] if options.against and "quantizer" not in CASES[case] else [])]:
            print(line(case, tool, options), flush=True)


def line(case, tool, options):
    command = [sys.executable, __file__, "--in-this-process", tool, "--case", case, "--device", options.device]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{os.getenv('PYTHONPATH', '')}"}
    command += ["--small"] if options.small else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"| {case} | {tool} | failed: {done.stderr.strip().splitlines()[-1][:120]} | | | | | |"
    found = json.loads(done.stdout.splitlines()[-1])
    rate = found["flops"] / found["seconds"]
    return (
        f"| {case} | {tool} | {found['seconds']:.3f} | {found['tokens'] / found['seconds']:,.0f} | {rate / 1e12:.1f} | "
        f"{rate / found['rate']:.0%} | {found['peak_bytes'] / 2**30:.2f} GiB | {found['loss']:.3f} |"
    )


if __name__ == "__main__":
    main()
