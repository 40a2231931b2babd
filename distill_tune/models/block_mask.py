"""Flex attention's mask for rows that share one sequence, made from the rows' bounds."""

from collections.abc import Sequence

import torch
from torch.nn.attention.flex_attention import BlockMask

from distill_tune.to_device import to_device

_BLOCK = 128  # tokens; what the kernels are made for


def block_mask(lengths: Sequence[int], window: int | None, device: torch.device) -> BlockMask:
    """A position sees its own row up to itself, at most ``window`` positions.

    What a position sees begins no earlier than where the one before it does, so of a block of queries the blocks of
    keys that any of them sees lie side by side, and so do those that all of them see. No pair of positions is looked
    at: besides the row of each token there are some 16 bytes for each pair of blocks.

    Args:
        lengths: of the rows.
    """
    s = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0)
    row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))  # [s]
    first_seen = (ends - torch.tensor(lengths))[row]  # [s]
    if window is not None:
        first_seen = torch.maximum(first_seen, torch.arange(s) - window + 1)

    own = torch.arange(-(-s // _BLOCK))  # of each block of queries the block of keys in the same place
    first = first_seen[own * _BLOCK] // _BLOCK
    # The last query of a block sees least of what lies before it; a block that is cut short is none that all see.
    of_last_query = first_seen[(own * _BLOCK + _BLOCK - 1).clamp(max=s - 1)]
    first_full = torch.minimum(-(-of_last_query // _BLOCK), own)
    first_full = torch.where((own + 1) * _BLOCK <= s, first_full, own)

    column = own[None]
    # Those that some see: before the full ones, then the block itself. What stands behind the counted ones is not read.
    num_before = (first_full - first)[:, None]
    some = torch.where(column < num_before, first[:, None] + column, own[:, None])
    full = (first_full[:, None] + column).clamp(max=len(own) - 1)

    def on_device(blocks: torch.Tensor) -> torch.Tensor:
        return to_device(blocks.to(torch.int32)[None, None], device)

    row = to_device(row, device)

    def seen(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        near = (q >= k) & (row[q] == row[k])
        return near if window is None else near & (q - k < window)

    return BlockMask.from_kv_blocks(
        on_device(first_full - first + 1),
        on_device(some),
        on_device(own - first_full),
        on_device(full),
        BLOCK_SIZE=_BLOCK,
        mask_mod=seen,
        seq_lengths=(s, s),
    )
