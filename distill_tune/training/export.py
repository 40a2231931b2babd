"""The trained student in Hugging Face's layout: model/."""

import json
import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.adapters import lora_shape
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import torchtune_to_hf

from torchtune.modules.peft import get_merged_lora_ckpt

_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}
# What of the base model's folder goes along: everything but weights and their indices.
_COPIED_SUFFIXES = (".json", ".model", ".jinja", ".txt", ".tiktoken")


@torch.no_grad()
def export_model(model: nn.Module, base: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """Write the student with its adapters merged, so that transformers opens it as it is.

    Written beside, then renamed: a folder of this name is complete.

    Args:
        base: the checkpoint that the student started from; its config.json and tokenizer files are copied.
        folder: filled anew.
        dtype: of the written weights. Adapters are merged in fp32 whatever it is.
    """
    weights = {name: value.detach().cpu().float() for name, value in model.state_dict().items()}
    if shape := lora_shape(model):
        weights = get_merged_lora_ckpt(weights, rank=shape.rank, alpha=shape.alpha)
    weights = {name: value.to(dtype) for name, value in weights.items()}
    weights = torchtune_to_hf(weights, base.model_type, base.config)

    final, folder = folder, folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(base.folder.iterdir()):
        if file.suffix in _COPIED_SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    config = {key: value for key, value in base.config.items() if key not in ("torch_dtype", "quantization_config")}
    config["dtype"] = _DTYPE_NAMES[dtype]
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_torch_state_dict(
        {name: value.contiguous() for name, value in weights.items()}, folder, metadata={"format": "pt"}
    )
    shutil.rmtree(final, ignore_errors=True)
    os.replace(folder, final)
