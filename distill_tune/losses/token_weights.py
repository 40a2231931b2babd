"""How much a token's divergence counts, by how sure the teacher is of itself."""

import math
from typing import Protocol

import torch


class TokenWeight(Protocol):
    """Weights of the divergence, one a token; no gradient goes through them."""

    def __call__(self, teacher_log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """
        Args:
            teacher_log_probs: at temperature 1, ``[n, v]``, float32; must not be overwritten.
            targets: token ids ``[n]``; those beyond v are tokens that the teacher has not.

        Returns:
            ``[n]``, 0 to 1.
        """
        ...


class TeacherCertainty:
    """1 - H(p) / log v: 1 where the teacher is sure of one token, 0 where it knows nothing."""

    def __call__(self, teacher_log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        entropy = torch.special.entr(teacher_log_probs.exp()).sum(-1)
        return (1 - entropy / math.log(teacher_log_probs.shape[-1])).clamp_(0, 1)


class TargetProbability:
    """p(target): a teacher is followed as far as it would have given the data's own answer."""

    def __call__(self, teacher_log_probs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        known = targets < teacher_log_probs.shape[-1]
        at_target = teacher_log_probs.gather(1, targets.where(known, 0)[:, None]).squeeze(1)
        return at_target.exp() * known
