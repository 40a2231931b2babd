"""Models: built from components and Hugging Face folders, checked against checkpoints, their output layer at hand."""

from distill_tune.models.adapters import adapter_names, freeze_all_but_adapters, lora_shape
from distill_tune.models.builders import from_hf, lora_from_hf
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.compilation import check_compiler, compile_layers, compile_module
from distill_tune.models.conversion import conversion_of
from distill_tune.models.hidden_states import hidden_states, is_projector, keep_hidden_states, match_layers, projectors
from distill_tune.models.loading import (
    build_on_meta,
    check_fit,
    checked_on_meta,
    fill_rotary_tables,
    load_model,
    load_weights,
    require_rows,
    require_tokens,
)
from distill_tune.models.named_checkpoint import open_checkpoint
from distill_tune.models.output_head import OutputHead, output_head, take_output_head
from distill_tune.models.packed_rows import use_packed_rows
from distill_tune.models.parameters import num_bytes
from distill_tune.models.precision import compute_in, computed_in
from distill_tune.models.vocabulary import (
    check_own_tokens,
    check_tokenizers,
    common_vocabulary,
    require_one_tokenizer,
    require_same_tokens,
)

__all__ = [
    "Checkpoint",
    "OutputHead",
    "adapter_names",
    "build_on_meta",
    "check_compiler",
    "check_fit",
    "check_own_tokens",
    "check_tokenizers",
    "checked_on_meta",
    "common_vocabulary",
    "compile_layers",
    "compile_module",
    "compute_in",
    "computed_in",
    "conversion_of",
    "fill_rotary_tables",
    "freeze_all_but_adapters",
    "from_hf",
    "hidden_states",
    "is_projector",
    "keep_hidden_states",
    "load_model",
    "load_weights",
    "lora_from_hf",
    "lora_shape",
    "match_layers",
    "num_bytes",
    "open_checkpoint",
    "output_head",
    "projectors",
    "require_one_tokenizer",
    "require_rows",
    "require_same_tokens",
    "require_tokens",
    "take_output_head",
    "use_packed_rows",
]
