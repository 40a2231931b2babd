"""One file of weights by torchtune's names, with the keys of a config that builds and reads it by torchtune alone."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save_file

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.config.components import instantiate
from distill_tune.disk import require_space
from distill_tune.errors import UserError
from distill_tune.export.beside import write_beside
from distill_tune.export.opened import Opened, logits_of, quiet_transformers, tool
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source
from distill_tune.models.conversion import TorchtuneConversion
from distill_tune.models.loading import fill_rotary_tables

_WEIGHTS, _CONFIG = "torchtune_model.safetensors", "torchtune.yaml"
_HEADER = """# Of a torchtune config: the model, and the checkpointer that reads its weights.
# checkpoint_dir is the folder of this file; output_dir is yours to name, and is another one.
"""
# transformers' architecture -> torchtune's model_type and builder.
_BUILDERS = {
    "LlamaForCausalLM": ("LLAMA3_2", "torchtune.models.llama3_2.llama3_2"),
    "MistralForCausalLM": ("MISTRAL", "torchtune.models.mistral.mistral"),
    "Qwen2ForCausalLM": ("QWEN2", "torchtune.models.qwen2.qwen2"),
    "Gemma2ForCausalLM": ("GEMMA2", "torchtune.models.gemma2.gemma2"),
    "Phi3ForCausalLM": ("PHI3_MINI", "torchtune.models.phi3.phi3"),
}
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def check(source: Source, settings: Settings) -> list[str]:
    """
    Raises:
        UserError: torchtune's builders cannot make this model; what they lack.
    """
    arguments = _model(source)
    told = []
    if arguments["max_seq_len"] < source.decoder.max_seq_len:
        told.append(
            f"torchtune has no sliding window: max_seq_len is {arguments['max_seq_len']}, up to where there is no "
            f"difference, not {source.decoder.max_seq_len}"
        )
    return told


def write(source: Source, folder: Path, settings: Settings) -> None:
    model_type, _ = _BUILDERS[source.decoder.architecture]
    weights = TorchtuneConversion(model_type, source.config()).to_torchtune(source.weights(settings.dtype))
    require_space("--output", folder, sum(value.numel() * value.element_size() for value in weights.values()))
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / _WEIGHTS, {"format": "pt"})
    config = {
        "model": _model(source),
        "checkpointer": {
            "_component_": "torchtune.training.FullModelTorchTuneCheckpointer",
            "checkpoint_dir": ".",
            "checkpoint_files": [_WEIGHTS],
            "model_type": model_type,
            "output_dir": "${output_dir}",
        },
    }
    text = yaml.safe_dump(config, sort_keys=False)
    (folder / _CONFIG).write_text(f"{_HEADER}{text}", encoding="utf-8")
    write_beside(source, folder)


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    """By torchtune's checkpointer and builder, as the written file names them."""
    from transformers import AutoTokenizer

    config = OmegaConf.load(folder / _CONFIG)
    with tempfile.TemporaryDirectory() as output_dir:
        of_this_folder = {"checkpoint_dir": str(folder), "output_dir": output_dir}
        checkpointer = instantiate(OmegaConf.merge(config.checkpointer, of_this_folder))
        weights = checkpointer.load_checkpoint()["model"]
    with torch.device("meta"):
        model = instantiate(config.model)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True, assign=True)
    fill_rotary_tables(model, torch.device("cpu"))
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return Opened(tool("torchtune"), logits_of(model.to(device).eval(), device), tokenizer)


def _model(source: Source) -> dict[str, Any]:
    """``model`` of a config, by torchtune's builder.

    Raises:
        UserError: it cannot make this model.
    """
    decoder = source.decoder
    if decoder.architecture not in _BUILDERS:
        raise UserError(
            f"--to torchtune: torchtune 0.6 has no builder for {decoder.architecture}; there are "
            f"{', '.join(_BUILDERS)}; --to hf is read by distill_tune.models.from_hf in any config"
        )
    model_type, builder = _BUILDERS[decoder.architecture]
    is_gemma, rope = model_type == "GEMMA2", _rope(source.config())
    windows = {window for window in decoder.windows if window is not None}
    lacking = [
        f"a rope scaling of the kind {rope['rope_type']}" * (rope["rope_type"] not in ("default", "llama3")),
        "biases" * (decoder.mlp_bias or decoder.output_bias or (decoder.qkv_bias and model_type != "QWEN2")),
        f"heads of {decoder.head_dim} dimensions"
        * (not is_gemma and decoder.head_dim != decoder.embed_dim // decoder.num_heads),
        "tied embeddings" * (decoder.tied_embeddings and model_type in ("MISTRAL", "PHI3_MINI")),
        "an output layer of its own" * (is_gemma and not decoder.tied_embeddings),
        "rope on a part of a head" * (2 * len(decoder.ropes[0].frequencies) != decoder.head_dim),
        "rope scaling with other bounds than Llama 3's"
        * (rope["rope_type"] == "llama3" and any(rope.get(key) != value for key, value in _LLAMA3_ROPE.items())),
    ]
    if rope["rope_type"] == "llama3" and model_type != "LLAMA3_2":
        lacking.append("Llama 3's rope scaling")
    if lacking := list(filter(None, lacking)):
        raise UserError(
            f"--to torchtune: {builder} has no place for {' or '.join(lacking)}; --to hf is read by "
            "distill_tune.models.from_hf in any config"
        )
    arguments: dict[str, Any] = {
        "_component_": builder,
        "vocab_size": decoder.vocab_size,
        "num_layers": decoder.num_layers,
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "embed_dim": decoder.embed_dim,
        "intermediate_dim": decoder.intermediate_dim,
        "max_seq_len": decoder.max_seq_len if is_gemma else min({decoder.max_seq_len, *windows}),
        "norm_eps": decoder.norm_eps,
        "rope_base": rope["rope_theta"],
    }
    if model_type in ("LLAMA3_2", "QWEN2"):
        arguments["tie_word_embeddings"] = decoder.tied_embeddings
    if model_type == "LLAMA3_2":
        arguments["scale_factor"] = rope["factor"] if rope["rope_type"] == "llama3" else 1
    if is_gemma:
        arguments |= {
            "head_dim": decoder.head_dim,
            "hidden_capping_value": decoder.attention_softcap,
            "final_capping_value": decoder.logit_softcap,
            "sliding_window_size": next(iter(windows), decoder.max_seq_len),
            "query_pre_attn_scalar": round(decoder.attention_scale**-2),
        }
    return arguments


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_type``, ``rope_theta`` and the rest of it, of either spelling that config.json has."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = found.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    return found | {"rope_type": kind, "rope_theta": int(theta) if float(theta).is_integer() else theta}
