"""Adapters of a model of :func:`from_hf` in PEFT's layout."""

import re
from typing import Any

import torch

from distill_tune.models.adapters import LoraShape
from distill_tune.models.decoder_config import DecoderConfig
from distill_tune.models.hf_names import Weights, projections

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def to_peft(
    weights: Weights, shape: LoraShape, config: DecoderConfig, *, inside: bool
) -> tuple[Weights, dict[str, Any]]:
    """
    Args:
        weights: the adapters' factors by their names in the model.
        inside: the base checkpoint keeps its language model beside a vision tower.

    Returns:
        PEFT's names and values, and the entries of adapter_config.json that follow from them. Where the checkpoint
        fuses projections, their factors are stacked: A over each other, B along a diagonal, which is the same update.
    """
    prefix = "base_model.model.model." + ("language_model." if inside else "")
    converted: Weights = {}
    ranks, alphas = dict[str, int](), dict[str, float]()
    targets = set()
    for layer in sorted({int(found[1]) for name in weights if (found := _LAYER.fullmatch(name))}):
        for theirs, parts in projections(config).items():
            modules = [f"layers.{layer}.{part.name}" for part in parts]
            if not any(f"{module}.lora_a.weight" in weights for module in modules):
                continue
            sizes = [part.stop - part.start if part.stop else 0 for part in parts]
            a, b = _stacked(weights, modules, sizes)
            name = f"{prefix}layers.{layer}.{theirs}"
            converted |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            if f"{modules[0]}.magnitude" in weights:
                converted[f"{name}.lora_magnitude_vector"] = weights[f"{modules[0]}.magnitude"]
            last = theirs.rpartition(".")[2]
            targets.add(last)
            if len(a) != shape.rank:
                ranks[last], alphas[last] = len(a), shape.alpha * len(a) / shape.rank
    if "output.lora_a.weight" in weights:
        targets.add("lm_head")
        converted["base_model.model.lm_head.lora_A.weight"] = weights["output.lora_a.weight"]
        converted["base_model.model.lm_head.lora_B.weight"] = weights["output.lora_b.weight"]
        if "output.magnitude" in weights:
            converted["base_model.model.lm_head.lora_magnitude_vector"] = weights["output.magnitude"]
    names: Any = sorted(targets)
    if inside:  # a vision tower has projections of the same names
        names = rf".*language_model.*\.({'|'.join(names)})"
    return converted, {
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": names,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }


def _stacked(weights: Weights, modules: list[str], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A ``[sum of ranks, in]`` and B ``[sum of rows, sum of ranks]`` of modules that share a matrix."""
    a = [weights[f"{module}.lora_a.weight"] for module in modules if f"{module}.lora_a.weight" in weights]
    if len(modules) == 1:
        return a[0], weights[f"{modules[0]}.lora_b.weight"]
    b = [
        weights[name] if (name := f"{module}.lora_b.weight") in weights else a[0].new_zeros(size, 0)
        for module, size in zip(modules, sizes, strict=True)
    ]
    return torch.cat(a), torch.block_diag(*b)
