"""What was kept of a teacher of another tokenizer for each position: how likely its own next token is."""

import dataclasses
from typing import ClassVar

import torch

from distill_tune.to_device import to_device


@dataclasses.dataclass(frozen=True)
class TokenLikelihoods:
    """All that :class:`~distill_tune.losses.ChunkLikelihood` asks of a teacher, as the signal of an
    :class:`~distill_tune.losses.Aligned`. It has no logits.

    Attributes:
        log_probs: of the teacher's tokens at its own rows, at ``temperature``, ``[n_t]``, float32.
        temperature: p is softmax(logits / temperature).
        vocab_size: v_t, of the logits that it was made from.
    """

    log_probs: torch.Tensor
    temperature: float
    vocab_size: int

    kind: ClassVar[str] = "likelihood"
    logits_per_row: ClassVar[int] = 0
    softcap: ClassVar[None] = None

    def __len__(self) -> int:
        return len(self.log_probs)

    def memory(self, rows: int, slot: int = 1) -> None:
        return None

    def to(self, device: torch.device) -> "TokenLikelihoods":
        return dataclasses.replace(self, log_probs=to_device(self.log_probs, device))

    @classmethod
    def of(cls, logits: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> "TokenLikelihoods":
        """
        Args:
            logits: ``[n_t, v_t]``, after any cap; not overwritten.
            targets: the teacher's tokens there, ``[n_t]``, int64.
        """
        log_probs = (logits.float() / temperature).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        return cls(log_probs, temperature, logits.shape[1])
