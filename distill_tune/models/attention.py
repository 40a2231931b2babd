"""Self-attention as today's decoders have it, for torchtune's transformer layer."""

import functools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, and_masks, create_block_mask, flex_attention

from distill_tune.models.rope import RotaryEmbedding

Mask = torch.Tensor | BlockMask | None


class Attention(nn.Module):
    """Grouped-query attention with what torchtune 0.6.1 lacks, under its parameter names.

    q and k are normalised before the rotary embedding (Qwen3, Gemma 3), keys and values are not copied for grouped
    queries where the kernel can do without, a layer may see a window only, and scores may be capped (Gemma 2).

    Args:
        q_proj, k_proj, v_proj, output_proj: linear layers, with LoRA or without.
        num_heads, num_kv_heads, head_dim: of queries, of keys and values, of each.
        rope: shared by the layers that turn alike.
        scale: scores are multiplied by it; usually head_dim ** -0.5.
        q_norm, k_norm: over each head.
        window: a position sees so many positions, itself included; None for all before it.
        softcap: scores s become softcap * tanh(s / softcap).
    """

    def __init__(
        self,
        *,
        q_proj: nn.Module,
        k_proj: nn.Module,
        v_proj: nn.Module,
        output_proj: nn.Module,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        rope: RotaryEmbedding,
        scale: float,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.output_proj = q_proj, k_proj, v_proj, output_proj
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.rope, self.scale, self.window, self.softcap = rope, scale, window, softcap
        self.kv_cache, self.cache_enabled = None, False  # torchtune's decoder asks

    def forward(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None = None,
        *,
        mask: Mask = None,
        input_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            x: ``[b, s, d]``.
            y: as torchtune's layer passes it, the same as ``x``.
            mask: who sees whom, ``[b, s, s]`` bool or a BlockMask; None is causal.
            input_pos: positions ``[b, s]``, for packed rows.
        """
        b, s, _ = x.shape
        q = self.rope(self.q_norm(self.q_proj(x).view(b, s, self.num_heads, self.head_dim)), input_pos)
        k = self.rope(self.k_norm(self.k_proj(x).view(b, s, self.num_kv_heads, self.head_dim)), input_pos)
        v = self.v_proj(x).view(b, s, self.num_kv_heads, self.head_dim)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, heads, s, head_dim]
        mask = _within_window(mask, self.window, s, x.device)
        if isinstance(mask, BlockMask):
            attended = self._flex(q, k, v, mask)
        elif self.softcap is not None:
            attended = self._capped(q, k, v, mask)
        else:
            attended = self._plain(q, k, v, mask)
        return self.output_proj(attended.transpose(1, 2).reshape(b, s, -1))

    def _plain(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # Only CUDA's kernels without a mask read grouped keys as they are; elsewhere the fast kernels want copies.
        grouped = q.is_cuda and mask is None
        if not grouped:
            k, v = self._copied(k), self._copied(v)
        mask = mask if mask is None else mask.view(-1, 1, *mask.shape[-2:])
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )

    def _capped(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert self.softcap is not None
        scores = (q * self.scale) @ self._copied(k).transpose(2, 3)  # [b, heads, s, s]
        scores = (scores / self.softcap).tanh() * self.softcap
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~mask.view(-1, 1, *mask.shape[-2:]), float("-inf"))
        return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ self._copied(v)

    def _flex(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> torch.Tensor:
        cap = self.softcap
        capped = None if cap is None else lambda score, b, h, q_index, k_index: cap * torch.tanh(score / cap)
        attend = _compiled_flex_attention() if q.is_cuda else cast(Callable[..., torch.Tensor], flex_attention)
        return attend(q, k, v, score_mod=capped, block_mask=mask, scale=self.scale, enable_gqa=True)

    def _copied(self, x: torch.Tensor) -> torch.Tensor:
        """Keys or values once for each query head: ``[b, kv_heads, s, head_dim] -> [b, heads, s, head_dim]``."""
        groups = self.num_heads // self.num_kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=1)


@functools.cache
def _compiled_flex_attention() -> Callable[..., torch.Tensor]:
    return torch.compile(flex_attention)


def _within_window(mask: Mask, window: int | None, s: int, device: torch.device) -> Mask:
    """``mask`` (None: causal) with all positions further back than ``window`` taken out."""
    if window is None or s <= window:
        return mask
    if isinstance(mask, BlockMask):
        seen = and_masks(mask.mask_mod, lambda b, h, q, k: q - k < window)
        return create_block_mask(seen, mask.shape[0], None, s, s, device=str(device))
    near = torch.ones(s, s, dtype=torch.bool, device=device).tril().triu(1 - window)
    return near if mask is None else mask & near
