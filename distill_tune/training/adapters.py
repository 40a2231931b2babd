"""LoRA factors in PEFT's layout: adapter/."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.adapters import adapter_names, lora_shape
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import PEFT_TYPES

from torchtune.models.convert_weights import tune_to_peft_adapter_config, tune_to_peft_adapter_weights


@torch.no_grad()
def export_adapter(model: nn.Module, base: Checkpoint, folder: Path) -> bool:
    """Write the adapters so that peft loads them onto the base model; returns whether there was anything to write.

    Families whose projections torchtune fuses (Phi) have no PEFT layout; their adapters are in ``model/`` alone.
    """
    names, shape = adapter_names(model), lora_shape(model)
    if shape is None or base.model_type not in PEFT_TYPES:
        return False
    weights = {name: p.detach().cpu() for name, p in model.named_parameters() if name in names}
    num_heads, num_kv_heads = base.config["num_attention_heads"], base.config["num_key_value_heads"]
    head_dim = base.config.get("head_dim") or base.config["hidden_size"] // num_heads
    weights = tune_to_peft_adapter_weights(
        {name: _reordered_magnitude(name, value, head_dim) for name, value in weights.items()},
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        dim=base.config["hidden_size"],
        head_dim=head_dim,
    )
    modules = {
        name.removesuffix(".weight").removesuffix(".lora_a").rpartition(".")[2] for name in names if "lora_a" in name
    }
    config = tune_to_peft_adapter_config(
        {"r": shape.rank, "lora_alpha": shape.alpha, "target_modules": sorted(modules)}, str(base.folder.resolve())
    )
    config |= {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "use_dora": any(name.endswith("magnitude") for name in names),
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return True


def _reordered_magnitude(name: str, value: torch.Tensor, head_dim: int) -> torch.Tensor:
    """DoRA's magnitudes of q and k in the rotary order of Hugging Face, which torchtune leaves out."""
    if not name.endswith(("q_proj.magnitude", "k_proj.magnitude")):
        return value
    return value.view(-1, head_dim // 2, 2).transpose(1, 2).reshape(-1)
