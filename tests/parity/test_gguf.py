"""GGUF files, written as llama.cpp writes them, against transformers on the folder that each was made of."""

from pathlib import Path

import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf
from tiny_gguf import write_gguf
from transformers import AutoModelForCausalLM

from distill_tune import models
from distill_tune.errors import UserError

TOKENS = torch.randint(3, 96, (2, 48), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(file: Path) -> torch.Tensor:
    config = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(file)})
    checkpoint = models.open_checkpoint("teacher_model", config, None)
    model = models.checked_on_meta("teacher_model", config, checkpoint, torch.float32)
    models.load_weights(model, checkpoint, torch.device("cpu"))
    return model(TOKENS)


@torch.no_grad()
def theirs(folder: Path, **arguments: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments).eval()(TOKENS).logits


def written(folder: Path, name: str, more: dict[str, object] | None = None, **changes: object) -> Path:
    write_architecture(folder, name, **changes)
    write_gguf(folder, folder / "model.gguf", "F32", more)
    return folder / "model.gguf"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama2", {}),
        ("llama2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
        ("llama3", {}),
        ("qwen2", {}),
        ("qwen2_yarn", {}),
        ("qwen3", {}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("gemma3", {"query_pre_attn_scalar": 32}),
    ],
    ids=["llama", "linear", "rope_freqs", "qwen2", "yarn", "qwen3", "gemma2", "gemma3"],
)
def test_a_file_gives_the_logits_of_the_folder_that_it_was_made_of(tmp_path, name, changes):
    file = written(tmp_path, name, **changes)
    torch.testing.assert_close(ours(file), theirs(tmp_path), rtol=0, atol=1e-4)


def test_rope_freqs_of_any_setting_are_read(tmp_path):
    scaling = {"factor": 5.0, "low_freq_factor": 2.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 64}
    rope = scaling | {"rope_type": "llama3", "rope_theta": 1000.0}
    file = written(tmp_path, "llama3", rope_parameters=rope)
    torch.testing.assert_close(ours(file), theirs(tmp_path), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama2", "gemma3"])
def test_transformers_reads_the_same_from_the_file(tmp_path, name):
    changes = {"query_pre_attn_scalar": 256, "head_dim": 256} if name == "gemma3" else {}
    rope = {"rope_parameters": None} if name == "gemma3" else {}
    file = written(tmp_path, name, **changes, **rope)
    torch.testing.assert_close(ours(file), theirs(tmp_path, gguf_file=file.name), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("qwen2", {"rope.dimension_count": 8}),
        ("llama2", {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0}),
        ("llama2", {"rope.scaling.attn_factor": 2.0}),
        ("llama2", {"attention.scale": 0.5}),
        ("llama2", {"attention.sliding_window": 8}),
        ("llama2", {"attention.causal": False}),
        ("llama2", {"logit_scale": 2.0}),
        ("llama2", {"expert_count": 8}),
        ("qwen2", {"final_logit_softcapping": 3.0}),
        ("gemma3", {"attn_logit_softcapping": 3.0}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_setting_that_changes_numbers_is_refused_by_name(tmp_path, name, more):
    file = (
        written(tmp_path, name, more, query_pre_attn_scalar=32) if name == "gemma3" else written(tmp_path, name, more)
    )
    with pytest.raises(UserError, match=f"{next(iter(more))}=.*: changes what the model says"):
        ours(file)


def test_settings_that_change_nothing_are_let_be(tmp_path):
    neutral = {"expert_count": 0, "attention.causal": True, "rope.scaling.type": "none", "rope.scaling.factor": 4.0}
    file = written(tmp_path, "llama2", neutral | {"rope.scaling.finetuned": False, "logit_scale": 0.0})
    torch.testing.assert_close(ours(file), theirs(tmp_path), rtol=0, atol=1e-4)
