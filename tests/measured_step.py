"""A training step of models without files, and the memory that it took: ``measured_step.py SCENARIO...``, in bytes.

Prints a line a scenario: the measured peak of a process above what it had before the models, and the estimate. Each has
a process of its own, forked from this one once it has imported everything.
"""

import os
import sys
import tempfile

import torch
from omegaconf import OmegaConf
from tiny import VOCAB_SIZE  # noqa: F401  (puts torchtune's compatibility first)

from distill_tune import losses, models, teachers, training
from distill_tune.data.batch import joined
from distill_tune.data.shape import Shape
from distill_tune.evaluation import estimate
from distill_tune.evaluation.memory import PeakMemory

from torchtune.models.llama3_2 import llama3_2, lora_llama3_2
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import set_activation_checkpointing, set_default_dtype

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 16, "lora_alpha": 32}
SHAPE = {"vocab_size": 16_000, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 256, "max_seq_len": 2048}
LENGTHS = (500, 600, 300, 700)


def main(scenario: str) -> None:
    cfg = OmegaConf.create({"device": "cpu", "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-4}})
    dtype = torch.bfloat16 if "bf16" in scenario else torch.float32
    cfg.gradient_accumulation_steps = 2 if "accumulated" in scenario else 1
    cfg.enable_activation_checkpointing = "checkpointed" in scenario
    build = (lambda **shape: lora_llama3_2(**LORA, **shape)) if "lora" in scenario else llama3_2

    def student_and_teacher():
        with set_default_dtype(dtype):
            student = build(num_layers=8, intermediate_dim=704, **SHAPE)
            teacher = llama3_2(num_layers=4, intermediate_dim=1024, **SHAPE).requires_grad_(False)
        models.freeze_all_but_adapters(student)
        models.compute_in(student, dtype)
        return student, teacher

    with torch.device("meta"):
        on_meta = student_and_teacher()
    # The second half of each row is learned: most of what is computed is the head's, and its memory is that of a chunk.
    shape, shards = Shape(LENGTHS, tuple(length // 2 for length in LENGTHS)), 1 if "sharded" in scenario else None
    estimated = estimate.memory_of(cfg, on_meta[0], teachers.LiveTeacher(on_meta[1]), shape, shards).peak

    torch.manual_seed(0)
    torch.randn(800, 800) @ torch.randn(800, 800)  # threads and their memory
    if shards:
        store = torch.distributed.FileStore(tempfile.mkstemp()[1], shards)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=shards)
        mesh = training.device_mesh(torch.device("cpu"))
    with PeakMemory(torch.device("cpu")) as peak:
        student, teacher_model = student_and_teacher()
        head, teacher = models.take_output_head(student), teachers.LiveTeacher(teacher_model)
        if cfg.enable_activation_checkpointing:
            set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
        if shards:
            training.shard_student(student, mesh, dtype=dtype)
            training.shard_teacher(teacher_model, mesh)
        optimizer = training.build_optimizer(cfg.optimizer, student.parameters())
        for parameter in student.parameters():  # the optimizer's state is there in all steps but the first
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for is_last in [False] * (cfg.gradient_accumulation_steps - 1) + [True]:
            if shards:
                student.set_requires_gradient_sync(is_last)
            rows = [torch.randint(3, SHAPE["vocab_size"], (length,)) for length in LENGTHS]
            labels = [row.where(torch.arange(len(row)) >= len(row) // 2, -100) for row in rows]
            micro_batch = joined([*zip(rows, labels, strict=True)])
            attention = micro_batch.attention()
            signal = teacher(micro_batch)
            hidden = student(micro_batch.tokens, **attention)[0, micro_batch.supervised_positions]
            head.gather()
            targets = micro_batch.targets[0, micro_batch.supervised_positions]
            losses.distillation_loss(hidden, head.projection_for_loss(), targets, signal, kd_ratio=0.5).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    print(peak.bytes, estimated, flush=True)


if __name__ == "__main__":
    for scenario in sys.argv[1:]:
        child = os.fork()
        if child == 0:
            main(scenario)
            os._exit(0)
        if status := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"{scenario}: status {status}")
