"""How much a token's divergence counts, by how sure the teacher is of itself."""

import math
from typing import Protocol

import torch

from distill_tune.losses.divergences import HUGE, Distribution


class TokenWeight(Protocol):
    """Weights of the divergence, one a token; no gradient goes through them."""

    def __call__(self, teacher: Distribution, targets: torch.Tensor) -> torch.Tensor:
        """
        Args:
            teacher: at temperature 1; must not be overwritten.
            targets: token ids ``[n]``; those beyond v are tokens that the teacher has not.

        Returns:
            ``[n]``, 0 to 1.
        """
        ...


class TeacherCertainty:
    """1 - H(p) / log v: 1 where the teacher is sure of one token, 0 where it knows nothing."""

    def __call__(self, teacher: Distribution, targets: torch.Tensor) -> torch.Tensor:
        entropy = -torch.linalg.vecdot(teacher.probs, teacher.log_probs.clamp(min=-HUGE))  # 0 * -inf must be 0
        return self.of_entropy(entropy, teacher.probs.shape[-1])

    def of_entropy(self, entropy: torch.Tensor, vocab_size: int) -> torch.Tensor:
        return (1 - entropy / math.log(vocab_size)).clamp_(0, 1)


class TargetProbability:
    """p(target): a teacher is followed as far as it would have given the data's own answer."""

    def __call__(self, teacher: Distribution, targets: torch.Tensor) -> torch.Tensor:
        known = targets < teacher.probs.shape[-1]
        return teacher.probs.gather(1, targets.where(known, 0)[:, None]).squeeze(1) * known
