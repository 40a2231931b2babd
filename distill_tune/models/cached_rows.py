"""Attention over a cache of keys and values: rows that fill their slots, and rows that grow by a token."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.packed_rows import PackedRows, Rows, capped_attention

from torchtune.modules import TransformerDecoder


class _Shape(NamedTuple):
    """Of a layer's keys and values for one row."""

    kv_heads: int
    length: int
    head_dim: int


def _shapes(model: TransformerDecoder, length: int) -> Iterator[_Shape]:
    for layer in model.layers:
        attention = layer.attn
        window = getattr(attention, "window", None) or getattr(attention, "sliding_window_size", None)
        yield _Shape(attention.num_kv_heads, min(length, window or length), attention.head_dim)


class KeyValueCache:
    """Keys and values of every layer, for a number of slots; a slot holds one row.

    A layer with a window keeps the window alone: position p lies at p modulo the window, in place of the one that has
    just left it.

    Args:
        model: whose layers they are.
        slots: rows at a time.
        length: positions of a row.
        dtype: of keys and values.

    Attributes:
        keys, values: of each layer, ``[slots, kv_heads, length or window, head_dim]``.
    """

    def __init__(
        self, model: TransformerDecoder, slots: int, length: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.slots, self.length = slots, length
        shapes = list(_shapes(model, length))
        most = max(length, *(slots * shape.kv_heads for shape in shapes))
        self.numbers = torch.arange(most, device=device)  # from which each step takes its own
        self.keys, self.values = (
            [torch.zeros((slots, *shape), device=device, dtype=dtype) for shape in shapes] for _ in range(2)
        )

    @staticmethod
    def bytes_of_slot(model: TransformerDecoder, length: int, dtype: torch.dtype) -> int:
        """What a row of so many positions takes."""
        return sum(2 * math.prod(shape) for shape in _shapes(model, length)) * dtype.itemsize

    def holds(self, length: int, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether it has room for rows of so many positions, in that dtype and there."""
        return self.length >= length and self.keys[0].device == device and self.keys[0].dtype == dtype

    def move(self, source: int, target: int) -> None:
        """Put the row of one slot into another."""
        for part in (*self.keys, *self.values):
            part[target] = part[source]


class FilledRows(PackedRows):
    """Prompts that share one sequence without padding, each of which fills a slot, or several.

    Args:
        lengths: of the prompts.
        slots: of each prompt, those that it fills.

    Attributes:
        layer: the number of the layer that attends next.
    """

    def __init__(self, lengths: Sequence[int], slots: Sequence[Sequence[int]], cache: KeyValueCache) -> None:
        super().__init__(lengths, cache.keys[0].device)
        self._slots, self._cache, self.layer = slots, cache, 0
        self._moves: dict[int, list[tuple[slice, torch.Tensor, Sequence[int]]]] = {}

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
        """As packed rows; keys and values go into the cache."""
        keys, values = self._cache.keys[self.layer], self._cache.values[self.layer]
        moves = self._moves_to(keys.shape[2])
        for kept, new in ((keys, k), (values, v)):
            new = _one_of_each_group(new, kept.shape[1])[0].to(kept.dtype)  # [kv_heads, s, head_dim]
            for read, at, slots in moves:
                for slot in slots:
                    kept[slot].index_copy_(1, at, new[:, read])
        return super().attend(q, k, v, scale=scale, window=window, softcap=softcap, dropout=dropout)

    def _moves_to(self, length: int) -> list[tuple[slice, torch.Tensor, Sequence[int]]]:
        """Of each prompt, which tokens go where in a layer's part of the cache, and in which slots; made once for all
        layers whose part is so long.
        """
        if length not in self._moves:
            starts = itertools.accumulate((0, *self.lengths))
            moves = []
            for start, of_row, slots in zip(starts, self.lengths, self._slots, strict=False):
                first = max(0, of_row - length)  # what has left the window is not kept
                at = self._cache.numbers[first:of_row] % length
                moves.append((slice(start + first, start + of_row), at, slots))
            self._moves[length] = moves
        return self._moves[length]


class GrownRows(Rows):
    """Rows of the first slots of a cache, each with a token more.

    Args:
        positions: of the new tokens in their rows, ``[n]``, int64, on the cache's device; row i is that of slot i.
        longest: positions that any row has now; no fewer.

    Attributes:
        layer: the number of the layer that attends next.
    """

    def __init__(self, positions: torch.Tensor, longest: int, cache: KeyValueCache) -> None:
        self._positions, self._longest, self._cache, self.layer = positions, longest, cache, 0
        self._at: dict[tuple[int, int], torch.Tensor] = {}
        self._masks: dict[tuple[int, torch.dtype], torch.Tensor] = {}

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
            q: ``[n, heads, 1, head_dim]``.
            k, v: ``[n, kv_heads, 1, head_dim]``, or a copy for each query head.
            scale, softcap: as :meth:`Rows.attend`.
            window, dropout: the first is how long the layer's part of the cache is, the second for training.

        Returns:
            ``[n, heads, 1, head_dim]``.
        """
        keys, values = self._cache.keys[self.layer], self._cache.values[self.layer]
        n, kv_heads, length = len(q), keys.shape[1], keys.shape[2]
        places = self._places(kv_heads, length)
        for kept, new in ((keys, k), (values, v)):
            new = _one_of_each_group(new, kv_heads).reshape(n * kv_heads, -1)
            kept.view(-1, kept.shape[-1]).index_copy_(0, places, new.to(kept.dtype))
        seen = min(self._longest, length)
        keys, values = keys[:n, :, :seen], values[:n, :, :seen]
        grouped = q.reshape(n, kv_heads, -1, q.shape[-1])  # the query heads of a group read the same keys
        if softcap is not None:
            attended = capped_attention(grouped, keys, values, self._mask(seen, torch.bool), scale, softcap)
        else:
            mask = self._mask(seen, q.dtype)
            attended = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return attended.view(q.shape)

    def _places(self, kv_heads: int, length: int) -> torch.Tensor:
        """Where new keys and values go in a layer's part of the cache, ``[n * kv_heads]``; made once for all layers."""
        if (kv_heads, length) not in self._at:
            n, numbers = len(self._positions), self._cache.numbers
            at = self._positions if self._longest <= length else self._positions % length
            heads = numbers[: n * kv_heads].view(n, kv_heads) * length
            self._at[kv_heads, length] = (heads + at[:, None]).flatten()
        return self._at[kv_heads, length]

    def _mask(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Which positions of the cache each row has filled, ``[n, 1, 1, length]``; of a window in the end all.

        Made once for all layers; bool, or of another dtype what is added to the scores.
        """
        if (length, dtype) not in self._masks:
            is_filled = (self._cache.numbers[:length] <= self._positions[:, None])[:, None, None]
            if dtype != torch.bool:
                is_filled = torch.zeros_like(is_filled, dtype=dtype).masked_fill_(~is_filled, -torch.inf)
            self._masks[length, dtype] = is_filled
        return self._masks[length, dtype]


def _one_of_each_group(x: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Keys or values without the copies that torchtune makes: ``[b, heads, s, head_dim] -> [b, kv_heads, s, ...]``."""
    return x[:, :: x.shape[1] // kv_heads]
