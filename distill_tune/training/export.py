"""The trained student in Hugging Face's layout: model/."""

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.disk import put_in_place, require_space
from distill_tune.models.adapters import LoraShape, lora_shape
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import conversion_of
from distill_tune.models.hidden_states import is_projector
from distill_tune.training.distributed import is_main_process, wait_for_all
from distill_tune.training.full_weights import full_weights

from torchtune.modules.peft import get_merged_lora_ckpt

_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}
# What of the base model's folder goes along: everything but weights and their indices.
_COPIED_SUFFIXES = (".json", ".model", ".jinja", ".txt", ".tiktoken")
_ADAPTER_PARTS = ("lora_a.weight", "lora_b.weight", "magnitude")


@torch.no_grad()
def export_model(model: nn.Module, base: Checkpoint, folder: Path, dtype: torch.dtype) -> None:
    """Write the student with its adapters merged, so that transformers opens it as it is.

    Written beside, then renamed: a folder of this name is complete. Every rank calls it, the main process writes, and
    all return when it is there.

    Args:
        base: the checkpoint that the student started from; its config.json and tokenizer files are copied.
        folder: filled anew.
        dtype: of the written weights. Adapters are merged in fp32 whatever it is.
    """
    weights = {name: value for name, value in full_weights(model) if not is_projector(name)}
    if is_main_process():
        if shape := lora_shape(model):
            _merge(weights, shape)
        conversion = conversion_of(model, base.model_type, base.config)
        weights = conversion.to_hf({name: value.to(dtype) for name, value in weights.items()})
        write_model_folder(folder, weights, conversion.exported_config(), base.folder, dtype)
    wait_for_all()


def write_model_folder(
    folder: Path, weights: dict[str, torch.Tensor], config: dict, base: Path, dtype: torch.dtype
) -> None:
    """A Hugging Face folder: weights by its names, config.json, and the tokenizer files of ``base``."""
    require_space("output_dir", folder, sum(value.numel() * value.element_size() for value in weights.values()))
    final, folder = folder, folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in sorted(base.iterdir()):
        if file.suffix in _COPIED_SUFFIXES and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)
    config = {key: value for key, value in config.items() if key not in ("torch_dtype", "quantization_config")}
    config["dtype"] = _DTYPE_NAMES[dtype]
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    save_torch_state_dict(
        {name: value.contiguous() for name, value in weights.items()}, folder, metadata={"format": "pt"}
    )
    put_in_place(folder, final)


def _merge(weights: dict[str, torch.Tensor], shape: LoraShape) -> None:
    """Fold every adapter into its weight, in fp32, in place, one module at a time."""
    modules = [name.removesuffix(".lora_a.weight") for name in weights if name.endswith(".lora_a.weight")]
    for module in modules:
        parts = {part: weights.pop(name) for part in _ADAPTER_PARTS if (name := f"{module}.{part}") in weights}
        parts["weight"] = weights[f"{module}.weight"]
        # Merged in place, so in a copy: the model itself may still be in use.
        copies = {f"{module}.{part}": value.to(torch.float32, copy=True) for part, value in parts.items()}
        merged = get_merged_lora_ckpt(copies, rank=shape.rank, alpha=shape.alpha)
        weights[f"{module}.weight"] = merged[f"{module}.weight"].to(parts["weight"].dtype)
