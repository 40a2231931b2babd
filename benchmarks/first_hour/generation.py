"""Answers on the device: log-probabilities against one forward pass over whole rows, and tokens a second."""

import statistics
import time
from typing import Any

import gpu_step
import torch

from distill_tune import models
from distill_tune.generation import Decoder, Request, Sampling
from distill_tune.generation.decoder import Spent
from first_hour.numbers import off
from first_hour.outcome import Deviation, Settings
from first_hour.steps import DTYPES

BOUNDS = {"bf16": 2e-2, "fp32": 1e-5}
ROUNDS = 3


def against_whole_rows(settings: Settings, dtype: str) -> Deviation:
    """Of a student with LoRA, prompts of several lengths, fewer slots than rows; whole rows on the CPU."""
    student, _ = gpu_step.on_meta("ours", {}, True, DTYPES[dtype])
    torch.manual_seed(0)
    gpu_step.fill(student, torch.device("cpu"))
    student.to(settings.device)
    requests = [Request([5 + row] * (1 + 7 * row), row, 20 + row) for row in range(5)]
    found = Decoder(student, {}, Sampling(), max_slots=3).generate(requests)
    student.cpu()
    head = models.take_output_head(student)
    wanted = []
    for request, completion in zip(requests, found, strict=True):
        row = torch.tensor([[*request.prompt, *completion.tokens]])
        with torch.no_grad():
            hidden = student(row)[0].float()
            log_probs = torch.nn.functional.linear(hidden, head.weight.float()).log_softmax(-1)
        wanted.append(log_probs[range(len(request.prompt) - 1, row.shape[1] - 1), completion.tokens])
    return Deviation(off([torch.tensor(of.log_probs) for of in found], wanted), BOUNDS[dtype])


def speed(settings: Settings, rows: int = 64, prompt: int = 256, new: int = 512) -> dict[str, Any]:
    """A 1B student with LoRA in bf16: tokens a second of prompts that are read, of answers that are written, of all."""
    if settings.small:
        rows, prompt, new = 4, 8, 8
    student, _ = gpu_step.on_meta("ours", {}, settings.small, torch.bfloat16)
    gpu_step.fill(student, torch.device(settings.device))
    vocab_size = student.tok_embeddings.num_embeddings
    generator = torch.Generator().manual_seed(0)
    requests = [
        Request(torch.randint(3, vocab_size, (prompt,), generator=generator).tolist(), row) for row in range(rows)
    ]
    decoder = Decoder(student, {}, Sampling(new), max_slots=rows)
    decoder.generate(requests)
    found: dict[str, list[float]] = {"prompts": [], "answers": [], "all": []}
    for _ in range(ROUNDS):
        decoder.spent, started = Spent(), time.perf_counter()
        decoder.generate(requests)
        spent = decoder.spent
        found["prompts"].append(spent.prompt_tokens / spent.prompt_seconds)
        found["answers"].append(spent.answer_tokens / spent.answer_seconds)
        found["all"].append(rows * new / (time.perf_counter() - started))
    return {
        "tokens_per_second": {phase: statistics.median(values) for phase, values in found.items()},
        "rows": rows,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "weights_bytes": sum(map(models.num_bytes, student.parameters())),
    }
