"""Divergences between the teacher's and the student's distribution over the next token."""

from typing import Protocol

import torch

HUGE = 1e30  # stands for infinity where it may meet a probability of 0


class Divergence(Protocol):
    """Compares two distributions a row, and differentiates for the student's logits."""

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            student_log_probs: ``[n, v]``, float32, each row normalised; may be overwritten.
            teacher_log_probs: ``[n, v]``, float32, each row normalised; -inf for a token that the teacher excludes; may
                be overwritten.

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
        # 0 * (-inf - x) must be 0, also where the student excludes the token as well.
        difference = teacher_log_probs.clamp_(min=-HUGE).sub_(student_log_probs).clamp_(max=HUGE)
        values = difference.mul_(teacher_probs).sum(-1)
        return values, student_log_probs.exp_().sub_(teacher_probs)
