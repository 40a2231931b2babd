"""Rows that share one sequence without padding: who may attend to whom, and how to compute it without waste."""

import abc
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.block_mask import block_mask
from distill_tune.models.compilation import allow_variants
from distill_tune.to_device import to_device

from torchtune.models.gemma2._attention import Gemma2Attention
from torchtune.modules import MultiHeadAttention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # PyTorch 2.9
    varlen_attn = None  # type: ignore[assignment]


class Rows(abc.ABC):
    """Stands where a model's mask stands, and computes the attention itself."""

    @abc.abstractmethod
    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """
        Args:
            q: ``[b, heads, s, head_dim]``, turned by its positions.
            k, v: ``[b, kv_heads, s, head_dim]``.
            scale: of the scores; default head_dim ** -0.5.
            window: a position sees so many positions, itself included; None for all before it.
            softcap: scores s become softcap * tanh(s / softcap).

        Returns:
            ``[b, heads, s, head_dim]``.
        """


class PackedRows(Rows):
    """A mask for one sequence of several rows: a position sees its own row up to itself.

    A plain class: torch.compile would guard each length of a frozen dataclass, and compile for every batch anew.

    Attributes:
        lengths: of the rows, in their order.
        boundaries: where each row begins, and the end, ``[rows + 1]``, int32, on the model's device.
        positions: of each token in its row, ``[1, s]``, int64.
        longest: of ``lengths``.
    """

    @torch.inference_mode(False)  # a teacher may ask first; the student saves these for its gradient
    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = tuple(lengths)
        boundaries = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.boundaries = to_device(boundaries, device)
        self.positions = to_device(torch.cat([torch.arange(length) for length in lengths])[None], device)
        self.longest = max(lengths)
        self._block_masks: dict[int | None, BlockMask] = {}

    def block_mask(self, window: int | None) -> BlockMask:
        """For flex attention; made once for all layers with this window."""
        if window not in self._block_masks:
            with torch.inference_mode(False):  # as above
                self._block_masks[window] = block_mask(self.lengths, window, self.positions.device)
        return self._block_masks[window]

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        dropout: float = 0.0,
    ) -> torch.Tensor:
        """Each row sees itself alone; nothing is computed between rows. ``b`` is 1.

        On CUDA in half precision one flash kernel takes all rows, where heads are of a width that it knows; scores with
        a cap go through flex attention. Elsewhere each row is a call.
        """
        if q.is_cuda and softcap is not None and not dropout:
            return _flex(_compiled_flex_attention(), q, k, v, self, scale, window, softcap)
        if q.is_cuda and softcap is None and not dropout and _has_varlen() and _is_for_flash(q):
            return _varlen(q, k, v, self, scale, window)
        return _row_by_row(q, k, v, self, scale, window, softcap, dropout)


@torch.compiler.disable  # it is compiled by itself, and its mask made of lengths, which change with every batch
def _flex(
    flex_attention: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: PackedRows,
    scale: float | None,
    window: int | None,
    softcap: float,
) -> torch.Tensor:
    def capped(score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    return flex_attention(q, k, v, score_mod=capped, block_mask=mask.block_mask(window), scale=scale, enable_gqa=True)


def _is_for_flash(q: torch.Tensor) -> bool:
    """Whether the flash kernel takes heads of this dtype and width."""
    return q.dtype in (torch.bfloat16, torch.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _has_varlen() -> bool:
    return "window_size" in _VARLEN_ARGUMENTS


_VARLEN_ARGUMENTS = frozenset(inspect.signature(varlen_attn).parameters) if varlen_attn is not None else frozenset()


def _varlen(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: PackedRows, scale: float | None, window: int | None
) -> torch.Tensor:
    grouped: dict[str, Any] = {"enable_gqa": True}
    if "enable_gqa" not in _VARLEN_ARGUMENTS:
        grouped = {}
        k, v = copied_for_queries(k, q.shape[1]), copied_for_queries(v, q.shape[1])
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [s, heads, head_dim]
    attended = varlen_attn(
        q,
        k,
        v,
        mask.boundaries,
        mask.boundaries,
        mask.longest,
        mask.longest,
        scale=scale,
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    return cast(torch.Tensor, attended).transpose(0, 1)[None]


@torch.compiler.disable  # the lengths change with every batch
def _row_by_row(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: PackedRows,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    k, v = copied_for_queries(k, q.shape[1]), copied_for_queries(v, q.shape[1])
    rows: Iterator[tuple[torch.Tensor, ...]] = zip(*(x.split(mask.lengths, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([_one_row(q, k, v, scale, window, softcap, dropout) for q, k, v in rows], dim=2)


def _one_row(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float | None,
    window: int | None,
    softcap: float | None,
    dropout: float,
) -> torch.Tensor:
    near = within_window(None, window, q.shape[2], q.device)
    if softcap is not None:
        return capped_attention(q, k, v, near, scale, softcap)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=near, is_causal=near is None, scale=scale, dropout_p=dropout
    )


def within_window(mask: torch.Tensor | None, window: int | None, s: int, device: torch.device) -> torch.Tensor | None:
    """``mask`` (None: causal) with all positions further back than ``window`` taken out."""
    if window is None or s <= window:
        return mask
    near = torch.ones(s, s, dtype=torch.bool, device=device).tril().triu(1 - window)
    return near if mask is None else mask & near


def capped_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float | None, softcap: float
) -> torch.Tensor:
    """Attention with capped scores, which the fused kernels lack. ``mask``: bool, or None for causal."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(2, 3)  # [b, heads, s, s]
    scores = (scores / softcap).tanh() * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v


def copied_for_queries(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values once for each query head: ``[b, kv_heads, s, head_dim] -> [b, heads, s, head_dim]``."""
    groups = heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


@functools.cache
def _compiled_flex_attention() -> Callable[..., torch.Tensor]:
    allow_variants()  # of widths, windows, training and teaching: beyond the limit it would make all pairs of scores
    return torch.compile(flex_attention)


def use_packed_rows(model: nn.Module) -> None:
    """Let the attention of torchtune's own builders take :class:`PackedRows` as a mask."""
    for module in model.modules():
        if isinstance(module, MultiHeadAttention) and not isinstance(module._attention_call, functools.partial):
            module._attention_call = functools.partial(_attention_call, module._attention_call)
        elif isinstance(module, Gemma2Attention):
            module.forward = functools.partial(_gemma2_attention, module)  # its own wants the whole matrix


def _attention_call(
    torchtunes: Callable[..., torch.Tensor],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Rows | torch.Tensor | BlockMask | None,
    dropout_p: float,
    is_causal: bool,
) -> torch.Tensor:
    if isinstance(mask, Rows):
        return mask.attend(q, k, v, dropout=dropout_p)
    return torchtunes(q, k, v, mask=mask, dropout_p=dropout_p, is_causal=is_causal)


def _gemma2_attention(
    module: Gemma2Attention,
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    *,
    mask: Rows | torch.Tensor | None = None,
    input_pos: torch.Tensor | None = None,
) -> torch.Tensor:
    if not isinstance(mask, Rows):
        return Gemma2Attention.forward(module, x, y, mask=mask, input_pos=input_pos)
    b, s, _ = x.shape
    q, k, v = (
        project(x).view(b, s, heads, module.head_dim)
        for project, heads in (
            (module.q_proj, module.num_heads),
            (module.k_proj, module.num_kv_heads),
            (module.v_proj, module.num_kv_heads),
        )
    )
    q, k = module.pos_embeddings(q, input_pos=input_pos), module.pos_embeddings(k, input_pos=input_pos)
    attended = mask.attend(
        *(part.transpose(1, 2) for part in (q, k, v)),
        scale=module.scaling,
        window=module.sliding_window_size,
        softcap=module.softcapping,
        dropout=module.attn_dropout if module.training else 0.0,
    )
    return module.output_proj(attended.transpose(1, 2).reshape(b, s, -1))
