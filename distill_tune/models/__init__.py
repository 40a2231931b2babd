"""Models: read from checkpoints, checked against them, their output layer at hand."""

from distill_tune.models.adapters import adapter_names, freeze_all_but_adapters, lora_shape
from distill_tune.models.checkpoint import (
    Checkpoint,
    build_on_meta,
    check_fit,
    checked_on_meta,
    load_model,
    require_length,
)
from distill_tune.models.output_head import OutputHead, output_head, take_output_head
from distill_tune.models.vocabulary import check_tokenizers, common_vocabulary

__all__ = [
    "Checkpoint",
    "OutputHead",
    "adapter_names",
    "build_on_meta",
    "check_fit",
    "check_tokenizers",
    "checked_on_meta",
    "common_vocabulary",
    "freeze_all_but_adapters",
    "load_model",
    "lora_shape",
    "output_head",
    "require_length",
    "take_output_head",
]
