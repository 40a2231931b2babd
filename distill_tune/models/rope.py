"""Rotary position embeddings in Hugging Face's layout: the first half of a head turns against the second."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from distill_tune.errors import UserError

KINDS = ("default", "linear", "llama3", "yarn", "longrope")
_FIRST_TABLE = 2048  # positions; the table doubles when a longer sequence comes


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """
    Attributes:
        dim: how many of a head's dimensions turn.
        base: rope_theta.
        max_seq_len: max_position_embeddings.
        kind: one of KINDS.
        parameters: what config.json says besides, as sorted pairs.
    """

    dim: int
    base: float
    max_seq_len: int
    kind: str = "default"
    parameters: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, dim: int, base: float, max_seq_len: int, scaling: Mapping[str, Any]) -> "RopeConfig":
        """
        Args:
            scaling: ``rope_scaling`` or ``rope_parameters`` of config.json.

        Raises:
            UserError: a kind of scaling that is not there.
        """
        kind = {"su": "longrope"}.get(found := scaling.get("rope_type", scaling.get("type", "default")), found)
        if kind not in KINDS:
            raise UserError(f"config.json: rope scaling {kind} is not supported; there are {', '.join(KINDS)}")
        pairs = ((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(scaling.items()))
        return cls(dim, base, max_seq_len, kind, tuple(pairs) if kind != "default" else ())

    @property
    def trained_length(self) -> int:
        """The longest sequence that these frequencies serve."""
        if self.kind == "longrope":  # beyond it another set of frequencies holds
            return int(dict(self.parameters).get("original_max_position_embeddings", self.max_seq_len))
        return self.max_seq_len


class RotaryEmbedding:
    """Turns queries and keys by their positions; no parameters, no buffers, so models on the meta device have it whole.

    Args:
        config: frequencies follow from it, as each scaling's own paper defines them.
    """

    def __init__(self, config: RopeConfig) -> None:
        self._inverse_frequencies, self._attention_factor = _frequencies(config)
        self._dim = config.dim
        self._cos = self._sin = torch.empty(0)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            x: queries or keys ``[b, s, heads, head_dim]``.
            positions: ``[b, s]``, each below s; None for 0 to s - 1.
        """
        length = x.shape[1]
        if len(self._cos) < length or self._cos.device != x.device:
            self._fill(max(_FIRST_TABLE, 1 << (length - 1).bit_length()), x.device)
        at = slice(0, length) if positions is None else positions
        cos, sin = self._cos[at].unsqueeze(-2), self._sin[at].unsqueeze(-2)  # [s, 1, dim / 2] or [b, s, 1, dim / 2]
        turned, still = x[..., : self._dim].float(), x[..., self._dim :]
        first, second = turned.chunk(2, dim=-1)
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        return torch.cat([turned.to(x.dtype), still], dim=-1)

    @torch.inference_mode(False)  # a teacher may ask first
    def _fill(self, length: int, device: torch.device) -> None:
        angles = torch.outer(torch.arange(length, device="cpu", dtype=torch.float32), self._inverse_frequencies)
        self._cos = (angles.cos() * self._attention_factor).to(device)
        self._sin = (angles.sin() * self._attention_factor).to(device)


def _frequencies(config: RopeConfig) -> tuple[torch.Tensor, float]:
    """Inverse frequencies ``[dim / 2]``, float32, and what queries and keys are multiplied by."""
    exponents = torch.arange(0, config.dim, 2, device="cpu", dtype=torch.float32) / config.dim
    plain = 1.0 / config.base**exponents
    parameters = dict(config.parameters)
    if config.kind == "default":
        return plain, 1.0
    if config.kind == "linear":
        return plain / parameters["factor"], 1.0
    original = parameters.get("original_max_position_embeddings") or config.max_seq_len
    if config.kind == "llama3":
        return _llama3(plain, parameters, original), 1.0
    if config.kind == "yarn":
        return _yarn(plain, config, parameters, original)
    factor = config.max_seq_len / original
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short = torch.tensor(parameters["short_factor"], device="cpu", dtype=torch.float32)
    return plain / short, parameters.get("attention_factor") or scale


def _llama3(plain: torch.Tensor, parameters: dict[str, Any], original: int) -> torch.Tensor:
    """Llama 3.1: slow frequencies are divided by the factor, fast ones kept, those between blended."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = original * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - share) * plain / parameters["factor"] + share * plain


def _yarn(
    plain: torch.Tensor, config: RopeConfig, parameters: dict[str, Any], original: int
) -> tuple[torch.Tensor, float]:
    """YaRN (arXiv 2309.00071, §3.2 to 3.4): the blend is by dimension, and attention gets a temperature."""
    factor = parameters["factor"]

    def dimension(turns: float) -> float:
        return config.dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.base))

    low, high = dimension(parameters.get("beta_fast") or 32), dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    positions = torch.arange(config.dim // 2, device="cpu", dtype=torch.float32)
    share = ((positions - low) / max(high - low, 1e-3)).clamp(0, 1)
    scale = parameters.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return share * plain / factor + (1 - share) * plain, scale
