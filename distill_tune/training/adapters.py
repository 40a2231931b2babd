"""LoRA factors in PEFT's layout: adapter/."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from distill_tune import qat
from distill_tune.disk import put_in_place
from distill_tune.models.adapters import adapter_names, lora_shape
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.conversion import conversion_of
from distill_tune.training.distributed import is_main_process
from distill_tune.training.exported_tokenizer import write_tokenizer
from distill_tune.training.full_weights import full_weights
from distill_tune.training.going_on import told_where_to_go_on


@torch.no_grad()
def export_adapter(model: nn.Module, base: Checkpoint, folder: Path, tokenizer: Any = None) -> bool:
    """Write the adapters so that peft loads them onto the base model; returns whether there was anything to write.

    torchtune's own builders of fused projections (Phi) have no PEFT layout; their adapters are in ``model/`` alone. So
    are those of a student that started from another adapter, which peft cannot put below these.
    Every rank calls it, the main process writes.

    Args:
        base: the checkpoint that the student started from, which peft loads the adapters onto.
        tokenizer: that the rows were written with, which goes along: it need not be the base's.
    """
    names, shape = adapter_names(model), lora_shape(model)
    if shape is None:
        return False
    if base.adapter is not None:
        if is_main_process():
            print(f"no adapter/: it would fit {base.folder} with {base.adapter.folder} alone; model/ has both merged")
        return False
    weights = dict(full_weights(model, only=names))
    conversion = conversion_of(model, base.model_type, base.config)
    if not is_main_process() or (converted := conversion.to_peft(weights, shape)) is None:
        return False
    peft_weights, config = converted
    config |= {
        "base_model_name_or_path": str(base.folder.resolve()),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "use_dora": any(name.endswith("magnitude") for name in names),
    }
    tensors = {name: value.contiguous() for name, value in peft_weights.items()}
    partial = folder.with_name(f"{folder.name}.partial")
    with told_where_to_go_on(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / "adapter_model.safetensors")
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tokenizer(partial, tokenizer, base.folder)
        qat.write_note(partial, qat.scheme_of(model))
        put_in_place(partial, folder)
    return True
