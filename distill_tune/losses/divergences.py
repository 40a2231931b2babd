"""Divergences between the teacher's and the student's distribution over the next token."""

from typing import Protocol

import torch


class Divergence(Protocol):
    """Compares two distributions a row, and differentiates for the student's logits."""

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            student_log_probs: ``[n, v]``, float32, each row normalised.
            teacher_log_probs: ``[n, v]``, float32, each row normalised; -inf for a token that the teacher excludes.

        Returns:
            The divergence of each row ``[n]``, 0 where both agree, and the gradient of their sum for the student's
            logits ``[n, v]``.
        """
        ...


class ForwardKL:
    """KL(teacher || student) = sum_v p_t (log p_t - log p_s), the loss of Hinton et al. 2015 (arXiv 1503.02531, §2).

    Its gradient for the student's logits is p_s - p_t. The student spreads over all that the teacher may say.
    """

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        teacher_probs = teacher_log_probs.exp()
        difference = (teacher_log_probs - student_log_probs).masked_fill_(teacher_probs == 0, 0.0)  # 0 log 0 = 0
        values = (teacher_probs * difference).sum(-1)
        return values, student_log_probs.exp().sub_(teacher_probs)
