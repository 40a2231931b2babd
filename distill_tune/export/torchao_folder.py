"""A Hugging Face folder whose linear layers torchao has quantised, as transformers itself writes and reads it."""

import importlib.util
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from distill_tune.errors import UserError
from distill_tune.export import hf_folder
from distill_tune.export.opened import Opened, open_with_transformers, quiet_transformers
from distill_tune.export.settings import Settings
from distill_tune.export.source import Source
from distill_tune.export.torchao_kinds import GROUP_SIZE, KINDS, bits_per_weight, has_groups, torchao_config
from distill_tune.models.hf_names import projections
from distill_tune.qat.note import trained_for

__all__ = ["KINDS", "check", "max_kl", "open_written", "write"]

# Nats a token: what is broken is beyond, what is rounded far below, but for small models in 4 bits.
_MAX_KL = {"int8": 0.05, "fp8": 0.2, "int8-int4": 1.0, "int4": 1.0}
_BF16_SLACK = 0.01  # nats a token: what computing in 16 bits adds


def check(source: Source, settings: Settings) -> list[str]:
    """
    Raises:
        UserError: this machine or this model cannot have the kind.
    """
    kind, group_size = settings.kind, _group_size(source, settings.kind)
    torchao_config(kind, group_size)
    if kind == "int4":
        _require_int4()
    undivided = _undivided(source, kind)
    layers = list(_layers(source))
    quantised = sum(count for name, width, count in layers if name not in undivided)
    if not quantised:
        raise UserError(
            f"--to torchao:{kind}: no row of this model is a multiple of {group_size} weights, which share a scale; "
            "take torchao:int8, whose rows are of any length"
        )
    own, rest = bits_per_weight(kind, group_size), settings.dtype.itemsize * 8
    share = quantised / source.num_parameters
    told = [
        f"{share:.0%} of the weights are quantised, to {own:g} bits with their scales; embeddings, output layer and "
        f"norms stay in {rest}: {share * own + (1 - share) * rest:.2f} bits a weight in all"
    ]
    if kind == "int8-int4":
        told.append("torchao stores the 4 bits in bytes of their own, so the files are as large as those of int8")
    if undivided:
        rows = " and ".join(map(str, sorted({width for name, width, _ in layers if name in undivided})))
        names = ", ".join(sorted(undivided))
        told.append(f"{names} stay in {rest} bits: rows of {rows} weights, no multiple of {group_size}")
    return told


def _require_int4() -> None:
    """
    Raises:
        UserError: torchao's kernels for plain int4 are not here.
    """
    try:
        has_kernels = importlib.util.find_spec("mslk") is not None and int(version("mslk").partition(".")[0]) >= 1
    except ImportError:
        has_kernels = False
    if not has_kernels or not torch.cuda.is_available():
        lacking = "this machine has no CUDA device" if not torch.cuda.is_available() else "mslk 1.0 is not installed"
        raise UserError(
            f"--to torchao:int4: torchao packs it with the kernels of mslk on a CUDA device, and {lacking}; "
            "torchao:int8-int4 and gguf:Q4_0 need neither"
        )


def write(source: Source, folder: Path, settings: Settings) -> list[str]:
    """The merged folder first, from which transformers quantises, then its files beside the quantised weights."""
    from transformers import AutoModelForCausalLM, GenerationConfig, TorchAoConfig

    merged = folder.with_name(f"{folder.name}.merged")
    try:
        hf_folder.write(source, merged, settings)
        kept = [rf".*\.{module}" for module in sorted(_undivided(source, settings.kind))]
        config = TorchAoConfig(
            torchao_config(settings.kind, _group_size(source, settings.kind)), modules_to_not_convert=["lm_head", *kept]
        )
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                merged,
                local_files_only=True,
                dtype=settings.dtype,
                quantization_config=config,
                **({"device_map": "cuda"} if settings.kind == "int4" else {}),
            )
            model.generation_config = GenerationConfig()  # transformers refuses to write settings that it reads
            model.save_pretrained(folder, max_shard_size=settings.max_shard_size)
        for file in merged.rglob("*"):
            place = folder / file.relative_to(merged)
            is_written = place.name == "config.json" or ".safetensors" in place.name
            if file.is_file() and not is_written:
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, place)
        return []
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def open_written(source: Source, folder: Path, settings: Settings, device: torch.device) -> Opened:
    """In the dtype in which it was written: torchao's scales have that one."""
    return open_with_transformers(folder, device, dtype="auto")


def max_kl(source: Source, settings: Settings) -> float:
    return _MAX_KL[settings.kind] + (_BF16_SLACK if settings.dtype != torch.float32 else 0.0)


def _layers(source: Source) -> Iterator[tuple[str, int, int]]:
    """Of each linear module of a layer, once for all layers: its name, a row's length, its weights in all layers."""
    weights = source.checkpoint.headers()
    for module in projections(source.decoder):
        of_module = [weights[f"model.layers.{at}.{module}.weight"] for at in range(source.decoder.num_layers)]
        yield module.rpartition(".")[2], of_module[0].shape[1], sum(weight.numel() for weight in of_module)


def _undivided(source: Source, kind: str) -> set[str]:
    """Modules whose rows no group size divides."""
    size = _group_size(source, kind)
    return {name for name, width, _ in _layers(source) if has_groups(kind) and width % size}


def _group_size(source: Source, kind: str) -> int:
    """That which the weights were trained for, or :data:`GROUP_SIZE`."""
    note = trained_for(source.folder)
    return int(note["groupsize"]) if note and note["fits"] == f"torchao:{kind}" else GROUP_SIZE
