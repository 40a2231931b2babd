"""Weights between Hugging Face's layout and torchtune's: by our own names, or by torchtune's converters."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.models import hf_names, peft_names
from distill_tune.models.adapters import LoraShape
from distill_tune.models.decoder_config import DecoderConfig, language_model_config
from distill_tune.models.hf_names import Weights

from torchtune.models import convert_weights
from torchtune.models.convert_weights import tune_to_peft_adapter_config, tune_to_peft_adapter_weights
from torchtune.models.gemma2._convert_weights import gemma2_hf_to_tune, gemma2_tune_to_hf
from torchtune.models.phi3._convert_weights import phi3_hf_to_tune, phi3_tune_to_hf
from torchtune.models.qwen2._convert_weights import qwen2_hf_to_tune, qwen2_tune_to_hf

# The model_type of torchtune's checkpointers -> (to torchtune, to Hugging Face).
_CONVERTERS: dict[str, tuple[Callable[..., Weights], Callable[..., Weights]]] = {
    **dict.fromkeys(
        ("GEMMA", "LLAMA2", "LLAMA3", "LLAMA3_2", "MISTRAL"), (convert_weights.hf_to_tune, convert_weights.tune_to_hf)
    ),
    "GEMMA2": (gemma2_hf_to_tune, gemma2_tune_to_hf),
    "PHI3_MINI": (phi3_hf_to_tune, phi3_tune_to_hf),
    "PHI4": (phi3_hf_to_tune, phi3_tune_to_hf),
    "QWEN2": (qwen2_hf_to_tune, qwen2_tune_to_hf),
}
_PEFT_TYPES = ("GEMMA", "LLAMA2", "LLAMA3", "LLAMA3_2", "MISTRAL", "QWEN2")


class Conversion(Protocol):
    """How one model's weights are called and laid out in its checkpoint."""

    def to_torchtune(self, weights: Weights) -> Weights:
        """Any part of a checkpoint; meta tensors are converted as well.

        Raises:
            UserError: a name that does not belong to this model.
        """
        ...

    def to_hf(self, weights: Weights) -> Weights:
        """The inverse, for a whole model."""
        ...

    def to_peft(self, weights: Weights, shape: LoraShape) -> tuple[Weights, dict[str, Any]] | None:
        """Adapter weights in PEFT's layout, and what adapter_config.json says of them; None where there is none."""
        ...

    def exported_config(self) -> dict[str, Any]:
        """config.json of a trained model."""
        ...


def conversion_of(model: nn.Module, model_type: str | None, config: dict[str, Any]) -> Conversion:
    """
    Args:
        model: built by :func:`~distill_tune.models.builders.from_hf`, which knows its names, or by torchtune.
        model_type: of the checkpointer, for torchtune's builders.
        config: the checkpoint's config.json.

    Raises:
        UserError: torchtune's builder without a model_type that torchtune has.
    """
    decoder_config = getattr(model, "decoder_config", None)
    if decoder_config is not None:
        return _FromFolder(decoder_config, config)
    return TorchtuneConversion(model_type, config)


class _FromFolder:
    """The names of :mod:`distill_tune.models.hf_names`."""

    def __init__(self, decoder: DecoderConfig, config: dict[str, Any]) -> None:
        self._decoder, self._config = decoder, config

    def to_torchtune(self, weights: Weights) -> Weights:
        return hf_names.hf_to_torchtune(weights, self._decoder)

    def to_hf(self, weights: Weights) -> Weights:
        return hf_names.torchtune_to_hf(weights, self._decoder)

    def to_peft(self, weights: Weights, shape: LoraShape) -> tuple[Weights, dict[str, Any]]:
        return peft_names.to_peft(weights, shape, self._decoder, inside="text_config" in self._config)

    def exported_config(self) -> dict[str, Any]:
        return language_model_config(self._config) | {"tie_word_embeddings": self._decoder.tied_embeddings}


class TorchtuneConversion:
    """torchtune's converters, for its builders; their rotary layout differs, so q and k are permuted."""

    def __init__(self, model_type: str | None, config: dict[str, Any]) -> None:
        if model_type not in _CONVERTERS:
            raise UserError(
                f"checkpointer.model_type={model_type}: torchtune's model builders need one of "
                f"{', '.join(sorted(_CONVERTERS))}; distill_tune.models.from_hf needs none"
            )
        self._model_type, self._config = model_type, config
        self._from, self._to = _CONVERTERS[model_type]

    def to_torchtune(self, weights: Weights) -> Weights:
        try:
            return self._from(weights, **self._shape_arguments(to_torchtune=True))
        except Exception as error:  # torchtune raises plain Exception for a name that it does not know
            reason = " ".join(str(error).split())[:200]
            foreign = next((told for name in weights if (told := hf_names.what_it_is(name))), "")
            raise UserError(
                f"checkpointer.model_type={self._model_type}: does not fit the checkpoint: {reason}{foreign}"
            ) from error

    def to_hf(self, weights: Weights) -> Weights:
        return self._to(weights, **self._shape_arguments(to_torchtune=False))

    def to_peft(self, weights: Weights, shape: LoraShape) -> tuple[Weights, dict[str, Any]] | None:
        if self._model_type not in _PEFT_TYPES:
            return None
        config = self._config
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        modules = {name.removesuffix(".lora_a.weight").rpartition(".")[2] for name in weights if "lora_a" in name}
        converted = tune_to_peft_adapter_weights(
            {name: _reordered_magnitude(name, value, head_dim) for name, value in weights.items()},
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            dim=config["hidden_size"],
            head_dim=head_dim,
        )
        return converted, tune_to_peft_adapter_config(
            {"r": shape.rank, "lora_alpha": shape.alpha, "target_modules": sorted(modules)}
        )

    def exported_config(self) -> dict[str, Any]:
        return dict(self._config)

    def _shape_arguments(self, *, to_torchtune: bool) -> Mapping[str, Any]:
        config, model_type = self._config, self._model_type
        shape = {
            "num_heads": config["num_attention_heads"],
            "num_kv_heads": config.get("num_key_value_heads", config["num_attention_heads"]),
            "dim": config["hidden_size"],
        }
        if model_type in ("PHI3_MINI", "PHI4"):
            grouped = shape["num_heads"] != shape["num_kv_heads"]
            return (shape if grouped else dict.fromkeys(shape)) if to_torchtune else {}
        if model_type == "QWEN2":
            return shape | {"tie_word_embeddings": config.get("tie_word_embeddings", False)}
        return shape | {"head_dim": config.get("head_dim")}


def _reordered_magnitude(name: str, value: torch.Tensor, head_dim: int) -> torch.Tensor:
    """DoRA's magnitudes of q and k in the rotary order of Hugging Face, which torchtune leaves out."""
    if not name.endswith(("q_proj.magnitude", "k_proj.magnitude")):
        return value
    return value.view(-1, head_dim // 2, 2).transpose(1, 2).reshape(-1)
