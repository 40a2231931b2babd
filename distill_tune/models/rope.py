"""Rotary position embeddings in Hugging Face's layout: the first half of a head turns against the second."""

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """
    Attributes:
        frequencies: the angle of each pair of dimensions, for each position; dimensions beyond these stay.
        attention_factor: queries and keys are multiplied by it (YaRN, arXiv 2309.00071, §3.4).
    """

    frequencies: tuple[float, ...]
    attention_factor: float = 1.0


class RotaryEmbedding:
    """Turns queries and keys by their positions.

    It has neither parameters nor buffers, so that models on the meta device have it whole.

    Args:
        max_seq_len: positions are below it.
    """

    def __init__(self, config: RopeConfig, max_seq_len: int) -> None:
        self._frequencies = torch.tensor(config.frequencies, device="cpu", dtype=torch.float32)
        self._attention_factor = config.attention_factor
        self._half, self._max_seq_len = len(config.frequencies), max_seq_len
        self._cos = self._sin = torch.empty(0)

    def __call__(self, x: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            x: queries or keys ``[b, s, heads, head_dim]``.
            positions: ``[b, s]``; None for 0 to s - 1.
        """
        if len(self._cos) == 0 or self._cos.device != x.device:
            self.fill(x.device)
        at = slice(0, x.shape[1]) if positions is None else positions
        cos, sin = self._cos[at].unsqueeze(-2), self._sin[at].unsqueeze(-2)  # [s, 1, half] or [b, s, 1, half]
        turned = x[..., : 2 * self._half].float()
        first, second = turned[..., : self._half], turned[..., self._half :]
        turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
        still = x[..., 2 * self._half :]
        return torch.cat([turned, still], dim=-1) if still.shape[-1] else turned

    @torch.inference_mode(False)  # a teacher may ask first
    def fill(self, device: torch.device) -> None:
        """Make the tables, ``[max_seq_len, half]``, fp32; before a forward pass is traced, whose graph they change."""
        angles = torch.outer(torch.arange(self._max_seq_len, device="cpu", dtype=torch.float32), self._frequencies)
        # In place: of 131,072 positions each table takes tens of MiB.
        self._cos, self._sin = (
            table.mul_(self._attention_factor).to(device) for table in (angles.cos(), angles.sin_())
        )
