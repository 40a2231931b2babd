"""Divergences between the teacher's and the student's distribution over the next token.

p is the teacher's distribution, q the student's. At a temperature T both are softmax(logits / T), and the loss takes
T^2 times the divergence, so that gradients keep their size as T grows. What that product tends to is said of each;
"half the variance" is half the mean over the vocabulary of the squared difference of the centred logits, which is what
T^2 * KL tends to (Hinton et al. 2015, arXiv 1503.02531, eq. 4).
"""

from typing import NamedTuple, Protocol

import torch

HUGE = 1e30  # stands for infinity where it may meet a probability of 0


class Distribution(NamedTuple):
    """Probabilities over the vocabulary, and their logarithms, -inf for an excluded token; float32, ``[n, v]``."""

    log_probs: torch.Tensor
    probs: torch.Tensor


def distribution(logits: torch.Tensor, probs: torch.Tensor) -> Distribution:
    """softmax and log_softmax of ``[n, v]`` with one exponential a logit.

    Args:
        logits: overwritten by the logarithms.
        probs: what the probabilities are written into, ``[n, v]``.
    """
    torch.exp(logits.sub_(logits.amax(-1, keepdim=True)), out=probs)
    total = probs.sum(-1, keepdim=True)
    return Distribution(logits.sub_(total.log()), probs.div_(total))


class Divergence(Protocol):
    """Compares two distributions a row, and differentiates for the student's logits."""

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            student, teacher: over the same tokens; their tensors may be overwritten.

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

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        # 0 * (-inf - x) must be 0, also where the student excludes the token as well.
        difference = teacher.log_probs.clamp_(min=-HUGE).sub_(student.log_probs).clamp_(max=HUGE)
        return torch.linalg.vecdot(teacher.probs, difference), student.probs.sub_(teacher.probs)


class ReverseKL:
    """KL(q || p) = sum_v q (log q - log p), as in MiniLLM (arXiv 2306.08543, eq. 1).

    Its gradient is q (log q - log p - KL). The student keeps to what the teacher holds likely. Tokens that one of them
    excludes (-inf) are left out of the sum, which would be infinite, as in torchtune's ReverseKLLoss. As T grows: half
    the variance.
    """

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        values, ratio, mean = _reverse(student, teacher)
        return values, ratio.sub_(mean[:, None]).mul_(student.probs)


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

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        return _both_ways(student, teacher, torch.full_like(student.probs[:, 0], self.sym_kd_ratio))


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

    _FIRST, _MORE = 64, 32  # candidates for the head, and so many times more for rows whose head is larger

    def __init__(self, head_mass: float = 0.5) -> None:
        require_within("head_mass", head_mass)
        self.head_mass = head_mass

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        gap = (student.probs - teacher.probs).abs_()
        total = gap.sum(-1)
        in_head = self._gap_of_head(teacher.probs, gap, min(self._FIRST, gap.shape[-1]))
        return _both_ways(student, teacher, torch.where(total > 0, in_head / total, 0.5))

    def _gap_of_head(self, teacher_probs: torch.Tensor, gap: torch.Tensor, most: int) -> torch.Tensor:
        likeliest, tokens = teacher_probs.topk(most)
        mass = likeliest.cumsum(-1)
        is_head = mass <= self.head_mass
        is_head[:, 0] = True
        in_head = (gap.gather(1, tokens) * is_head).sum(-1)
        if most == gap.shape[-1]:
            return in_head
        # Waits for the device once, which takes less than sorting all rows there.
        larger = (mass[:, -1] <= self.head_mass).nonzero()[:, 0]
        if len(larger):
            more = min(most * self._MORE, gap.shape[-1])
            in_head[larger] = self._gap_of_head(teacher_probs[larger], gap[larger], more)
        return in_head


def _both_ways(
    student: Distribution, teacher: Distribution, forward_share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """forward_share * KL(p || q) + (1 - forward_share) * KL(q || p); ``forward_share`` ``[n]``."""
    reverse, ratio, mean = _reverse(student, teacher)
    forward = -torch.linalg.vecdot(teacher.probs, ratio)
    share = forward_share[:, None]
    gradient = ratio.mul_(1 - share).add_(share - (1 - share) * mean[:, None]).mul_(student.probs)
    return forward_share * forward + (1 - forward_share) * reverse, gradient.sub_(teacher.probs.mul_(share))


def _reverse(student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL(q || p) ``[n]``, log q - log p in place ``[n, v]``, and the mean of that under q ``[n]``.

    Where the student excludes a token the ratio is 0, where the teacher alone does, -1: of q log q/p every other token
    has the slope log q/p + 1, and one that is left out of the sum has none.
    """
    ratio = student.log_probs.sub_(teacher.log_probs)
    values = mean = torch.linalg.vecdot(student.probs, ratio)
    # Elsewhere to look would be to wait for the device.
    if values.device.type != "cpu" or not values.isfinite().all():
        excluded = ratio.isposinf()
        ratio.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        values = torch.linalg.vecdot(student.probs, ratio)
        mean = torch.linalg.vecdot(student.probs, ratio.masked_fill_(excluded, -1.0))
    return values, ratio, mean


def require_within(name: str, value: float, least: float = 0.0, most: float = 1.0) -> None:
    """
    Raises:
        ValueError: ``value`` is outside.
    """
    if not least <= value <= most:
        raise ValueError(f"{name}={value}: must be from {least:g} to {most:g}")
