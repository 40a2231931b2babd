"""Self-attention as today's decoders have it, for torchtune's transformer layer."""

import torch
import torch.nn.functional as F
from torch import nn

from distill_tune.models.packed_rows import Rows, capped_attention, copied_for_queries, within_window
from distill_tune.models.rope import RotaryEmbedding


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
        mask: Rows | torch.Tensor | None = None,
        input_pos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            x: ``[b, s, d]``.
            y: as torchtune's layer passes it, the same as ``x``.
            mask: rows that share a sequence (``b`` is 1), or who sees whom, ``[b, s, s]`` bool; None is causal.
            input_pos: positions ``[b, s]``, for packed rows.
        """
        b, s, _ = x.shape
        q = self.rope(self.q_norm(self.q_proj(x).view(b, s, self.num_heads, self.head_dim)), input_pos)
        k = self.rope(self.k_norm(self.k_proj(x).view(b, s, self.num_kv_heads, self.head_dim)), input_pos)
        v = self.v_proj(x).view(b, s, self.num_kv_heads, self.head_dim)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, heads, s, head_dim]
        if isinstance(mask, Rows):
            attended = mask.attend(q, k, v, scale=self.scale, window=self.window, softcap=self.softcap)
        else:
            attended = self._plain(q, k, v, within_window(mask, self.window, s, x.device))
        return self.output_proj(attended.transpose(1, 2).reshape(b, s, -1))

    def _plain(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        mask = mask if mask is None else mask.view(-1, 1, *mask.shape[-2:])
        # Only CUDA's kernels without a mask read grouped keys as they are; elsewhere the fast kernels want copies.
        grouped = q.is_cuda and mask is None and self.softcap is None
        if not grouped:
            k, v = copied_for_queries(k, self.num_heads), copied_for_queries(v, self.num_heads)
        if self.softcap is not None:
            return capped_attention(q, k, v, mask, self.scale, self.softcap)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale, enable_gqa=grouped
        )
