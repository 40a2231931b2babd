"""Four steps and a short one in one process, or as one of several: what tests of sharded training compare.

As a script, under torchrun: ``sharded_training.py FOLDER SCENARIO...`` writes each scenario's weights to FOLDER.
"""

import itertools
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from stand_in_cuda import give_operators_cpu_kernels, packed_flash
from tiny import VOCAB_SIZE

from distill_tune import data, losses, models, qat, teachers, training
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.generation import Decoder, Request, Sampling, stream_of
from distill_tune.models import packed_rows

STEPS, SEQUENCES = 8, 8  # a step takes so many, on however many ranks
# Where a rank has no supervised token, and at last no row, and some between them; those in bf16 drift apart in all.
TAKEN = (0, 1, 2, 3, STEPS)
SCENARIOS: dict[str, dict] = {
    "plain": {"generates": True},
    "accumulated": {"accumulation": 2},
    "packed": {"packed": True},
    "lora": {"lora": True},
    "lora_checkpointed": {"lora": True, "checkpointed": True, "generates": True},
    "compiled": {"compiled": True, "checkpointed": True, "steps": 4},
    "not_resharded": {"reshard_after_forward": False},
    "own_output_group": {"custom_sharded_layers": ["tok_embeddings", "output"], "generates": True},
    "untied_own_output_group": {"student": "untied", "custom_sharded_layers": ["tok_embeddings", "output"]},
    "replicated": {"replicate": 2},
    "qlora": {"lora": True, "quantize_base": True, "student": "wide", "steps": 5, "generates": True},
    "quantised": {"scheme": qat.Q4_0(), "generates": True},
    "quantised_lora": {"scheme": qat.Q4_0(), "lora": True, "checkpointed": True},
    "bf16": {"dtype": torch.bfloat16, "accumulation": 2, "steps": 8},
    "bf16_untied": {"dtype": torch.bfloat16, "student": "untied", "custom_sharded_layers": ["output"], "steps": 8},
    "bf16_lora": {"dtype": torch.bfloat16, "lora": True, "accumulation": 2, "steps": 8},
}


def rows(packed: bool) -> TokenisedRows:
    """Of 2 to 60 tokens; of every second eight, one alone has supervised tokens; the last makes a step by itself."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(2, 60, (STEPS * SEQUENCES + 1,), generator=generator)
    tokens = torch.randint(3, VOCAB_SIZE, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    labels = tokens.clone()
    for row, (start, stop) in enumerate(itertools.pairwise(offsets)):
        labels[start : stop if row % 16 > 8 else start + (stop - start) // 2] = -100
    return TokenisedRows(tokens, labels, offsets, packed=packed, max_seq_len=60)


def answers(model: torch.nn.Module) -> torch.Tensor:
    """Of five prompts, each by one of the ranks, the last of which has fewer."""
    requests = [Request([5 + row, 17, 40][: 1 + row % 3], stream_of(0, row)) for row in range(5)]
    share = range(training.rank(), len(requests), training.num_ranks())
    found = Decoder(model, {}, Sampling(6)).generate([requests[row] for row in share])
    tokens = torch.zeros(len(requests), 6, dtype=torch.int64)
    for row, completion in zip(share, found, strict=True):
        tokens[row] = torch.tensor(completion.tokens)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tokens)
    return tokens


def component(folder: Path, lora: bool, **more: bool) -> dict:
    arguments = {"lora_attn_modules": ["q_proj", "v_proj"], "apply_lora_to_mlp": True, "lora_rank": 4} if lora else {}
    return {
        "_component_": f"distill_tune.models.{'lora_from_hf' if lora else 'from_hf'}",
        "path": str(folder),
        **arguments,
        **more,
    }


def train(folder: Path, scenario: str, **changed: Any) -> dict[str, torch.Tensor]:
    """The weights after TAKEN (or the scenario's steps), on the first rank; of some, answers after three steps."""
    settings = SCENARIOS[scenario] | changed
    device, lora = torch.device("cpu"), settings.get("lora", False)
    count = training.num_ranks()
    mesh = training.device_mesh(device, settings.get("replicate", 1)) if torch.distributed.is_initialized() else None
    torch.manual_seed(0)

    quantize = {"quantize_base": True} if settings.get("quantize_base") else {}
    dtype = torch.bfloat16 if quantize else settings.get("dtype", torch.float32)

    def build(name: str, lora: bool, **more: bool):
        config = OmegaConf.create(component(folder / name, lora, **more))
        checkpoint = models.open_checkpoint("model", config, None)
        return models.checked_on_meta("model", config, checkpoint, dtype), checkpoint

    student, student_checkpoint = build(settings.get("student", "student"), lora, **quantize)
    if "scheme" in settings:
        qat.prepare(student, settings["scheme"])
    teacher_model, teacher_checkpoint = build("teacher", False)
    models.freeze_all_but_adapters(student)
    if mesh is None:
        models.compute_in(student, dtype)
    head = models.take_output_head(student)
    if settings.get("checkpointed"):
        from torchtune.modules import TransformerSelfAttentionLayer
        from torchtune.training import set_activation_checkpointing

        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    if settings.get("compiled"):
        models.compile_layers(student)
        models.compile_layers(teacher_model)
    if mesh is not None:
        options = {"custom_sharded_layers": settings.get("custom_sharded_layers", [])}
        training.shard_teacher(teacher_model, mesh, **options)
        reshard = settings.get("reshard_after_forward", True)
        training.shard_student(student, mesh, dtype=dtype, reshard_after_forward=reshard, **options)
    models.load_weights(student, student_checkpoint, device)
    models.load_weights(teacher_model, teacher_checkpoint, device)
    teacher = teachers.LiveTeacher(teacher_model)
    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad], lr=1e-3, eps=1e-5
    )  # eps: no step on rounding alone
    accumulation = settings.get("accumulation", 1)
    plan = data.StepPlan(
        [rows(settings.get("packed", False))],
        batch_size=SEQUENCES // accumulation // count,
        gradient_accumulation_steps=accumulation,
        shuffle=False,
        rank=training.rank(),
        num_ranks=count,
    )
    found = {}
    for step in range(settings["steps"]) if "steps" in settings else TAKEN:
        if step == 3 and settings.get("generates"):
            found["answers"] = answers(student)
        batches = plan.micro_batches(0, step)
        for batch in batches:
            if mesh is not None:
                student.set_requires_gradient_sync(batch is batches[-1])
            attention = batch.attention()
            signal = teacher(batch)
            hidden = student(batch.tokens, **attention)
            head.gather()
            sums = losses.distillation_loss(
                hidden[0, batch.supervised_positions],
                head.projection_for_loss(),
                batch.targets[0, batch.supervised_positions],
                signal,
                kd_ratio=0.5,
            )
            (sums.loss / plan.num_supervised(0, step)).backward()
        teacher.release()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return found | {name: value.contiguous() for name, value in training.full_weights(student)}


if __name__ == "__main__":
    training.init_distributed("cpu")
    give_operators_cpu_kernels()
    target = Path(sys.argv[1])
    for name in sys.argv[2:]:
        # What is compiled has one graph a layer, as on CUDA.
        with patch.object(packed_rows, "_row_by_row", packed_flash) if "compiled" in name else nullcontext():
            found = train(target, name)
        if training.is_main_process():
            save_file(found, target / f"{name}_{training.num_ranks()}.safetensors")
    training.leave()
