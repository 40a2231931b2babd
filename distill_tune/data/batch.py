"""One micro-batch: tokens, what to predict, and who may attend to whom."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.datasets import IGNORE_INDEX

from torchtune.modules.attention_utils import packed_block_causal_mask

Row = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Batch:
    """
    Attributes:
        tokens: ``[b, s]``, int64.
        targets: the token that follows each position, ``[b, s]``, int64; -100 where nothing is to be learned.
        lengths: for packed rows, the lengths of the rows in each sequence, padding included in the last.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    lengths: tuple[tuple[int, ...], ...] | None = None

    @property
    def supervised(self) -> torch.Tensor:
        """Which positions carry a target, ``[b, s]``, bool."""
        return self.targets != IGNORE_INDEX

    def to(self, device: torch.device) -> "Batch":
        return dataclasses.replace(self, tokens=self.tokens.to(device), targets=self.targets.to(device))

    def attention(self) -> dict[str, Any]:
        """Arguments for the model's forward: for packed rows, positions ``[b, s]`` and a block-causal mask."""
        if self.lengths is None:
            return {}  # causal, and padding only comes after the row
        device = self.tokens.device
        positions = torch.stack([torch.cat([torch.arange(n) for n in lengths]) for lengths in self.lengths]).to(device)
        if device.type == "cuda":
            mask = packed_block_causal_mask([torch.tensor(ns, device=device) for ns in self.lengths])
        else:
            mask = torch.stack([torch.block_diag(*[torch.ones(n, n).tril() for n in ns]) for ns in self.lengths])
            mask = mask.bool().to(device)  # [b, s, s]
        return {"input_pos": positions, "mask": mask}


def padded(rows: Sequence[Row]) -> Batch:
    """One row a sequence, padded to the longest."""
    tokens, targets = zip(*(_shifted(row) for row in rows), strict=True)
    return Batch(
        pad_sequence(list(tokens), batch_first=True, padding_value=0),
        pad_sequence(list(targets), batch_first=True, padding_value=IGNORE_INDEX),
    )


def packed(packs: Sequence[Sequence[Row]]) -> Batch:
    """Several rows a sequence, none of which sees another."""
    joined = []
    for rows in packs:
        tokens, targets = zip(*(_shifted(row) for row in rows), strict=True)
        joined.append((torch.cat(tokens), torch.cat(targets), [len(row) for row in tokens]))
    longest = max(len(tokens) for tokens, _, _ in joined)
    for joined_tokens, _, lengths in joined:
        lengths[-1] += longest - len(joined_tokens)
    return Batch(
        pad_sequence([tokens for tokens, _, _ in joined], batch_first=True, padding_value=0),
        pad_sequence([targets for _, targets, _ in joined], batch_first=True, padding_value=IGNORE_INDEX),
        tuple(tuple(lengths) for _, _, lengths in joined),
    )


def _shifted(row: Row) -> Row:
    """(tokens, the token after each); the last position has none."""
    tokens, labels = row
    return tokens.long(), torch.cat([labels[1:], labels.new_full((1,), IGNORE_INDEX)]).long()
