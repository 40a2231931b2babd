"""A folder of LoRA factors in PEFT's layout, read on its base: which model that is, and the weights merged."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from distill_tune.errors import UserError
from distill_tune.models.hf_names import Weights, canonical_name, not_of_the_decoder
from distill_tune.models.weight_files import WeightFiles

_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
# What of LoraConfig changes nothing here: it chose the modules, or the first values of factors that are in the file.
_WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "loftq_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
})  # fmt: skip
_READ = frozenset({"alpha_pattern", "lora_alpha", "lora_bias", "r", "rank_pattern", "use_dora", "use_rslora"})
_FIRST_VALUES = (None, True, False, "gaussian", "eva", "orthogonal")  # those that leave the base's weights as they are
_FACTOR = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(weight|bias))?"
)


def has_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, or a model's with one; not one of which merging has left the config alone."""
    has_weights = any((folder / name).is_file() for name in _FILES)
    return (folder / _CONFIG).is_file() and (has_weights or not (folder / "config.json").is_file())


def has_left_over_config(folder: Path) -> bool:
    """Whether a model's folder has an adapter_config.json and no adapter."""
    return (folder / _CONFIG).is_file() and not has_adapter(folder)


def model_folder(key: str, folder: Path) -> Path:
    """Where a folder's config.json and tokenizer are: of an adapter without a model, in that of its base.

    Args:
        key: the config's key that names ``folder``, for messages.

    Raises:
        UserError: the base is not to be found.
    """
    if (folder / "config.json").is_file() or not has_adapter(folder):
        return folder
    name = _read_config(key, folder).get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise UserError(f"{key}={folder}: is an adapter, and {_CONFIG} names no base_model_name_or_path; name it there")
    places = [Path(os.path.expanduser(name)), folder / name]
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        places += [Path("models") / name.partition("/")[2], *_in_hub_cache(name)]
    base = next((place for place in places if (place / "config.json").is_file()), None)
    if base is None:
        looked = ", ".join(dict.fromkeys(map(str, places)))
        raise UserError(
            f"{key}={folder}: is an adapter of {name}, which is not here (looked in {looked}, and in the cache of the "
            f"Hugging Face hub); download it (distill-tune download OWNER/NAME), or name its folder as "
            f"base_model_name_or_path in {_CONFIG}"
        )
    if has_adapter(base):
        raise UserError(f"{key}={folder}: its base {base} has an adapter of its own; merge one of them with peft first")
    return base


def _in_hub_cache(name: str) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that the hub could have
        return []
    return [Path(found).parent] if isinstance(found, str) else []


def _read_config(key: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{key}={folder}: {_CONFIG} is broken: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{key}={folder}: {_CONFIG} is broken: it is no mapping")
    return config


def adapter_file(key: str, folder: Path) -> Path:
    """
    Raises:
        UserError: there is none.
    """
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{key}={folder}: has {_CONFIG}, and no {_FILES[0]}; if the folder's model is whole, delete {_CONFIG}"
    )


@dataclasses.dataclass(frozen=True)
class AdapterFolder:
    """LoRA's factors over a model's weights, which they change by B A alpha / r (arXiv 2106.09685, §4.1), or
    alpha / sqrt(r) (rsLoRA, 2312.03732); with DoRA the rows are scaled to magnitudes as well (2402.09353, §4.1).

    Attributes:
        key: the config's key, for messages.
        replaced: weights that were trained whole, by the names of :func:`canonical_name`.
        factors: of each changed module, by PEFT's names for them.
        config: adapter_config.json.
    """

    key: str
    folder: Path
    config: Mapping[str, Any]
    replaced: Weights
    factors: Mapping[str, Weights]

    @classmethod
    def open(cls, key: str, folder: Path) -> "AdapterFolder":
        """
        Raises:
            UserError: it cannot be read, or asks for more than is known here; what that is.
        """
        config, file = _read_config(key, folder), adapter_file(key, folder)
        if (kind := config.get("peft_type")) != "LORA":
            raise UserError(f"{key}={folder}: is an adapter of the type {kind}; merged here are LoRA's; {_ELSEWHERE}")
        known = _WITHOUT_EFFECT | _READ | {"init_lora_weights"}
        unread = [f"{name}={value}" for name, value in config.items() if name not in known and value]
        if config.get("init_lora_weights") not in _FIRST_VALUES:
            unread.append(f"init_lora_weights={config['init_lora_weights']}")
        if unread:
            raise UserError(f"{key}={folder}: {_CONFIG}: {', '.join(unread)[:100]} is not read here; {_ELSEWHERE}")
        replaced: Weights = {}
        factors: dict[str, Weights] = {}
        for name, tensor in WeightFiles(key, [file]).weights():
            name = name.removeprefix("base_model.model.")
            if not_of_the_decoder(name):
                continue
            if factor := _FACTOR.fullmatch(name):
                module = canonical_name(f"{factor[1]}.weight").removesuffix(".weight")
                part = "lora_bias" if factor[3] == "bias" else factor[2]
                factors.setdefault(module, {})[part] = tensor
            else:
                plain = name.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")
                replaced[canonical_name(plain)] = tensor
        if not factors and not replaced:
            raise UserError(f"{key}={folder}: {file.name} is empty")
        return cls(key, folder, config, replaced, factors)

    @property
    def unties(self) -> bool:
        """Whether it gives the output layer or the embeddings alone other weights."""
        embeddings, output = (self.replaced.get(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
        if embeddings is not None and output is not None and not {"model.embed_tokens", "lm_head"} & set(self.factors):
            return not torch.equal(embeddings, output)
        return any(self._changes(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))

    def check(self, weights: Mapping[str, torch.Tensor]) -> None:
        """
        Args:
            weights: the base's, meta tensors.

        Raises:
            UserError: the base has not what is changed, or in other shapes; factors are missing.
        """
        for name, tensor in self.replaced.items():
            if name not in weights:
                raise UserError(f"{self._of(name)}: its base has no such weight")
            if tensor.shape != weights[name].shape:
                shapes = f"is {list(tensor.shape)}, its base's is {list(weights[name].shape)}"
                raise UserError(f"{self._of(name)} {shapes}; resize the base and merge them with peft first")
        for module, parts in self.factors.items():
            if (weight := weights.get(f"{module}.weight")) is None:
                raise UserError(f"{self._of(module)}: its base has no such module")
            names = {name.replace("_embedding", "") for name in parts}
            wants = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if self.config.get("use_dora") else set())
            if names - {"lora_bias"} != wants or ("lora_bias" in names and f"{module}.bias" not in weights):
                raise UserError(f"{self._of(module)}: has {', '.join(sorted(parts))}, which do not make an update")
            if self.config.get("use_dora") and "lora_embedding_A" in parts:
                raise UserError(f"{self._of(module)}: DoRA on embeddings is not read here; {_ELSEWHERE}")
            a, b = self._a_and_b(module)
            rank = self._of_module("rank_pattern", module, self.config.get("r"))
            if (len(a), b.shape[1]) != (rank, rank) or (len(b), a.shape[1]) != tuple(weight.shape):
                told = f"factors {list(a.shape)} and {list(b.shape)} do not fit the rank {rank}"
                raise UserError(f"{self._of(module)}: {told} and its base's {list(weight.shape)}")

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """A weight of the base with what this changes; float32 where factors do."""
        weight = self.replaced.get(name, weight)
        module, _, kind = name.rpartition(".")
        parts = self.factors.get(module)
        if parts is None or (kind == "bias" and "lora_bias" not in parts):
            return weight
        weight, scale = weight.float(), self._scale(module)
        if kind == "bias":
            return weight + scale * parts["lora_bias"].float()
        a, b = self._a_and_b(module)
        weight = weight + scale * (b.float() @ a.float())
        if (magnitude := parts.get("lora_magnitude_vector")) is not None:
            weight = weight * (magnitude.float().flatten() / weight.norm(dim=1))[:, None]
        return weight

    def _changes(self, name: str) -> bool:
        return name in self.replaced or name.removesuffix(".weight") in self.factors

    def _a_and_b(self, module: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``[r, in]`` and ``[out, r]`` of a weight ``[out, in]``; an embedding's weight lies the other way."""
        parts = self.factors[module]
        if "lora_embedding_A" in parts:
            return parts["lora_embedding_B"].T, parts["lora_embedding_A"].T
        return parts["lora_A"], parts["lora_B"]

    def _scale(self, module: str) -> float:
        rank = len(self._a_and_b(module)[0])
        alpha = self._of_module("alpha_pattern", module, self.config.get("lora_alpha", 8))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _of_module(self, patterns: str, module: str, default: Any) -> Any:
        """A module's entry among patterns, which match an end of its name, the first that does."""
        for pattern, value in (self.config.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return value
        return default

    def _of(self, name: str) -> str:
        return f"{self.key}={self.folder}: {_FILES[0]}: {name}"


_ELSEWHERE = "merge it with peft (merge_and_unload), or let a distill_tune.teachers.HuggingFace read it"
