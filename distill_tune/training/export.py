"""The trained student in Hugging Face's layout: model/."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import qat
from distill_tune.data.ends import exported_stops
from distill_tune.disk import put_in_place, require_space
from distill_tune.models.adapters import LoraShape, lora_shape
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import conversion_of
from distill_tune.models.hidden_states import is_projector
from distill_tune.models.tokenizer_files import files_of
from distill_tune.training.distributed import is_main_process, wait_for_all
from distill_tune.training.exported_tokenizer import write_tokenizer
from distill_tune.training.full_weights import full_weights
from distill_tune.training.going_on import told_where_to_go_on

from torchtune.modules.peft import get_merged_lora_ckpt

_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32", torch.float16: "float16"}
# What of the base model's folder goes along besides its tokenizer.
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# What a config.json says of weights that are not these, or of Python files that its own architecture does not need.
_NOT_EXPORTED = ("torch_dtype", "quantization_config", "auto_map")
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ADAPTER_PARTS = ("lora_a.weight", "lora_b.weight", "magnitude")


@torch.no_grad()
def export_model(model: nn.Module, base: Checkpoint, folder: Path, dtype: torch.dtype, tokenizer: Any = None) -> None:
    """Write the student with its adapters merged, so that transformers opens it as it is.

    Written beside, then renamed: a folder of this name is complete. Every rank calls it, the main process writes, and
    all return when it is there.

    Args:
        base: the checkpoint that the student started from, whose config.json and generation_config.json are taken.
        folder: filled anew.
        dtype: of the written weights. Adapters are merged in fp32 whatever it is.
        tokenizer: that the rows were written with; see :func:`write_model_folder`.
    """
    weights = merged_weights(model, base, dtype)
    if is_main_process():
        config = conversion_of(model, base.model_type, base.config).exported_config()
        with told_where_to_go_on(folder):
            write_model_folder(folder, weights, config, base.folder, dtype, tokenizer, qat.scheme_of(model))
    wait_for_all()


@torch.no_grad()
def merged_weights(model: nn.Module, base: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The student's weights with its adapters merged, by Hugging Face's names, on the CPU of the main process.

    Every rank calls it; the others get nothing.

    Args:
        base: the checkpoint that the student started from.
        dtype: of the weights. Adapters are merged in fp32 whatever it is.
    """
    weights = {name: value for name, value in full_weights(model) if not is_projector(name)}
    if not is_main_process():
        return {}
    if shape := lora_shape(model):
        _merge(weights, shape)
    conversion = conversion_of(model, base.model_type, base.config)
    return conversion.to_hf({name: value.to(dtype) for name, value in weights.items()})


def write_model_folder(
    folder: Path,
    weights: dict[str, torch.Tensor],
    config: dict[str, Any],
    base: Path,
    dtype: torch.dtype,
    tokenizer: Any = None,
    scheme: qat.Scheme | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """A Hugging Face folder: weights by its names, config.json, generation_config.json and the tokenizer.

    Both configs stop at every token that ends an answer; see :func:`~distill_tune.data.ends.exported_stops`.

    Args:
        base: the folder that the model was made from.
        tokenizer: that the rows were written with; ``base``'s where it is None or not of transformers.
        scheme: that the weights were trained for, which is noted beside them.
        max_shard_size: of a file of weights; of several, an index says which weight is where.
    """
    require_space("output_dir", folder, sum(value.numel() * value.element_size() for value in weights.values()))
    final, folder = folder, folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file in files_of(base, TERMS):
        shutil.copyfile(file, folder / file.name)
    stops = exported_stops(tokenizer, base, config.get("vocab_size", sys.maxsize))
    ends = {"eos_token_id": stops if len(stops) > 1 else stops[0]} if stops else {}
    config = {key: value for key, value in config.items() if key not in _NOT_EXPORTED}
    _write_json(folder / "config.json", config | ends | {"dtype": _DTYPE_NAMES[dtype]})
    _write_json(folder / "generation_config.json", _generation_config(base, config) | ends)
    write_tokenizer(folder, tokenizer, base)
    qat.write_note(folder, scheme)
    save_torch_state_dict(
        {name: value.contiguous() for name, value in weights.items()},
        folder,
        max_shard_size=max_shard_size,
        metadata={"format": "pt"},
    )
    put_in_place(folder, final)


def _generation_config(base: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The base's generation_config.json as it is, or the special tokens of config.json in its place.

    Not by transformers, which does not write settings for sampling beside ``do_sample: false``; others read them.
    """
    file = base / "generation_config.json"
    if not file.is_file():
        return {key: config[key] for key in _SPECIAL_TOKENS if config.get(key) is not None}
    content = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key != "_from_model_config"}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
