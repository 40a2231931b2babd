"""Divergences between the teacher's and the student's distribution over the next token.

p is the teacher's distribution, q the student's. At a temperature T both are softmax(logits / T), and the loss takes
T^2 times the divergence, so that gradients keep their size as T grows. What that product tends to is said of each;
"half the variance" is half the mean over the vocabulary of the squared difference of the centred logits, which is what
T^2 * KL tends to (Hinton et al. 2015, arXiv 1503.02531, eq. 4).
"""

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
    """KL(p || q) = sum_v p (log p - log q), the loss of Hinton et al. 2015 (arXiv 1503.02531, §2).

    Its gradient for the student's logits is q - p. The student spreads over all that the teacher may say. As T grows:
    half the variance.
    """

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        teacher_probs = teacher_log_probs.exp()
        # 0 * (-inf - x) must be 0, also where the student excludes the token as well.
        difference = teacher_log_probs.clamp_(min=-HUGE).sub_(student_log_probs).clamp_(max=HUGE)
        values = difference.mul_(teacher_probs).sum(-1)
        return values, student_log_probs.exp_().sub_(teacher_probs)


class ReverseKL:
    """KL(q || p) = sum_v q (log q - log p), as in MiniLLM (arXiv 2306.08543, eq. 1).

    Its gradient is q (log q - log p - KL). The student keeps to what the teacher holds likely. Tokens that one of them
    excludes (-inf) are left out of the sum, which would be infinite, as in torchtune's ReverseKLLoss. As T grows: half
    the variance.
    """

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ratio = _finite(student_log_probs - teacher_log_probs)
        student_probs = student_log_probs.exp_()
        values = torch.linalg.vecdot(student_probs, ratio)
        return values, ratio.sub_(values[:, None]).mul_(student_probs)


class SymmetricKL:
    """ratio * KL(p || q) + (1 - ratio) * KL(q || p), as torchtune's SymmetricKLLoss. As T grows: half the variance.

    Args:
        sym_kd_ratio: share of the forward direction, 0 to 1.

    Raises:
        ValueError: ``sym_kd_ratio`` outside 0 to 1.
    """

    def __init__(self, sym_kd_ratio: float = 0.5) -> None:
        require_within("sym_kd_ratio", sym_kd_ratio)
        self.sym_kd_ratio = sym_kd_ratio

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        share = torch.full_like(student_log_probs[:, 0], self.sym_kd_ratio)
        return _both_ways(student_log_probs, teacher_log_probs, share)


class AdaptiveKL:
    """a * KL(p || q) + (1 - a) * KL(q || p), a for each token (Wu et al. 2024, arXiv 2404.02657, §4.3).

    a is the share of sum |p - q| that lies in the teacher's head: its likeliest token, and those after it as long as
    they have no more than ``head_mass`` together. So forward KL acts where the head is off, reverse KL where the tail
    is. No gradient goes through a; where both agree it is 1/2. As T grows: half the variance.

    Args:
        head_mass: the paper's mu, above 0 and at most 1.

    Raises:
        ValueError: ``head_mass`` outside 0 to 1.
    """

    _FIRST = 64  # candidates for the head; rows whose head is larger are sorted whole

    def __init__(self, head_mass: float = 0.5) -> None:
        require_within("head_mass", head_mass)
        self.head_mass = head_mass

    def __call__(
        self, student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        teacher_probs = teacher_log_probs.exp()
        gap = (student_log_probs.exp() - teacher_probs).abs_()
        total = gap.sum(-1)
        in_head = self._gap_of_head(teacher_probs, gap, min(self._FIRST, gap.shape[-1]))
        share = torch.where(total > 0, in_head / total, 0.5)
        return _both_ways(student_log_probs, teacher_log_probs, share)

    def _gap_of_head(self, teacher_probs: torch.Tensor, gap: torch.Tensor, most: int) -> torch.Tensor:
        likeliest, tokens = teacher_probs.topk(most)
        mass = likeliest.cumsum(-1)
        is_head = mass <= self.head_mass
        is_head[:, 0] = True
        in_head = (gap.gather(1, tokens) * is_head).sum(-1)
        larger = mass[:, -1] <= self.head_mass
        if most < gap.shape[-1] and larger.any():
            in_head[larger] = self._gap_of_head(teacher_probs[larger], gap[larger], gap.shape[-1])
        return in_head


def _both_ways(
    student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor, forward_share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """forward_share * KL(p || q) + (1 - forward_share) * KL(q || p); ``forward_share`` ``[n]``."""
    ratio = _finite(student_log_probs - teacher_log_probs)
    student_probs, teacher_probs = student_log_probs.exp_(), teacher_log_probs.exp_()
    reverse = torch.linalg.vecdot(student_probs, ratio)
    forward = -torch.linalg.vecdot(teacher_probs, ratio)
    share = forward_share[:, None]
    gradient = ratio.sub_(reverse[:, None]).mul_(1 - share).add_(share).mul_(student_probs)
    gradient.addcmul_(teacher_probs, share, value=-1)
    return forward_share * forward + (1 - forward_share) * reverse, gradient


def _finite(ratio: torch.Tensor) -> torch.Tensor:
    """log q - log p in place, 0 where one of them is excluded."""
    return ratio.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def require_within(name: str, value: float, least: float = 0.0, most: float = 1.0) -> None:
    """
    Raises:
        ValueError: ``value`` is outside.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}={value}: must be from {least:g} to {most:g}")
