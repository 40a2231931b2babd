"""One file of weights by torchtune's names, with the keys of a config that builds and reads it by torchtune alone."""

import tempfile
from collections.abc import Iterator, Mapping
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
    "Phi3ForCausalLM": ("PHI3_MINI", "torchtune.models.phi3.phi3"),
}
# Whose builder computes something else than transformers.
_OTHERWISE = {
    "Gemma2ForCausalLM": "torchtune 0.6's builder caps Gemma 2's last hidden states, and not its logits: it answers "
    "otherwise than what was trained",
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


def write(source: Source, folder: Path, settings: Settings) -> list[str]:
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
    return []


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    """By torchtune's checkpointer and builder, as the written file names them."""
    from transformers import AutoTokenizer

    config: Any = OmegaConf.load(folder / _CONFIG)
    with tempfile.TemporaryDirectory() as output_dir:
        plain: Any = OmegaConf.to_container(config.checkpointer, resolve=False)
        of_this_folder = {"checkpoint_dir": str(folder), "output_dir": output_dir}
        checkpointer = instantiate(OmegaConf.create({**plain, **of_this_folder}))
        weights = checkpointer.load_checkpoint()["model"]
    with torch.device("meta"):
        model = instantiate(config.model)
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True, assign=True)
    fill_rotary_tables(model, torch.device("cpu"))
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    logits = logits_of(model.to(device).eval(), device)
    return Opened(tool("torchtune"), logits, tokenizer, longest=model.max_seq_len)


def _model(source: Source) -> dict[str, Any]:
    """``model`` of a config, by torchtune's builder.

    Raises:
        UserError: it cannot make this model.
    """
    decoder = source.decoder
    architecture, elsewhere = decoder.architecture, "--to hf is read by distill_tune.models.from_hf in any config"
    if architecture not in _BUILDERS:
        lacking = f"torchtune 0.6 has no builder for {architecture}; there are those of {', '.join(_BUILDERS)}"
        raise UserError(f"--to torchtune: {_OTHERWISE.get(architecture, lacking)}; {elsewhere}")
    model_type, builder = _BUILDERS[architecture]
    if lacking := " or ".join(_lacking(source, model_type)):
        raise UserError(f"--to torchtune: {builder} has no place for {lacking}; {elsewhere}")
    rope = _rope(source.config())
    arguments: dict[str, Any] = {
        "_component_": builder,
        "vocab_size": decoder.vocab_size,
        "num_layers": decoder.num_layers,
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "embed_dim": decoder.embed_dim,
        "intermediate_dim": decoder.intermediate_dim,
        "max_seq_len": min([decoder.max_seq_len, *(window for window in decoder.windows if window is not None)]),
        "norm_eps": decoder.norm_eps,
        "rope_base": rope["rope_theta"],
    }
    if model_type in ("LLAMA3_2", "QWEN2"):
        arguments["tie_word_embeddings"] = decoder.tied_embeddings
    if model_type == "LLAMA3_2":
        arguments["scale_factor"] = rope["factor"] if rope["rope_type"] == "llama3" else 1
    return arguments


def _lacking(source: Source, model_type: str) -> Iterator[str]:
    """What of a model its builder has no place for."""
    decoder, rope = source.decoder, _rope(source.config())
    if rope["rope_type"] not in ("default", *(["llama3"] if model_type == "LLAMA3_2" else [])):
        yield f"a rope scaling of the kind {rope['rope_type']}"
    elif rope["rope_type"] == "llama3" and any(rope.get(key) != value for key, value in _LLAMA3_ROPE.items()):
        yield "rope scaling with other bounds than Llama 3's"
    if 2 * len(decoder.ropes[0].frequencies) != decoder.head_dim:
        yield "rope on a part of a head"
    if decoder.mlp_bias or decoder.output_bias or decoder.qkv_bias != (model_type == "QWEN2"):
        yield "biases" if model_type != "QWEN2" or decoder.qkv_bias else "projections without biases"
    if decoder.head_dim != decoder.embed_dim // decoder.num_heads:
        yield f"heads of {decoder.head_dim} dimensions"
    if decoder.tied_embeddings and model_type not in ("LLAMA3_2", "QWEN2"):
        yield "tied embeddings"


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_type``, ``rope_theta`` and the rest of it, of either spelling that config.json has."""
    found = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = found.get("rope_theta", config.get("rope_theta", 10_000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    return found | {"rope_type": kind, "rope_theta": int(theta) if float(theta).is_integer() else theta}
