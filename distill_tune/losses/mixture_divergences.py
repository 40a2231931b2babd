"""Divergences from a mixture of both distributions, which are finite wherever one of them is 0."""

import torch

from distill_tune.losses.divergences import Distribution, ForwardKL, ReverseKL, require_within

# exp(80) fits float32; where p and q are further apart the smaller one is below 1e-34.
_MOST = 80.0


class JensenShannon:
    """Generalised Jensen-Shannon divergence, beta * KL(p || m) + (1 - beta) * KL(q || m), m = beta p + (1 - beta) q.

    As GKD has it (Agarwal et al. 2023, arXiv 2306.13649, eq. 1), TRL's GKDTrainer and Liger. Divided by beta it tends
    to KL(p || q) as beta goes to 0, divided by 1 - beta to KL(q || p) as beta goes to 1; so, as TRL has it, beta 0 is
    forward KL and beta 1 reverse KL. The gradient is (1 - beta) q (log q/m - KL(q || m)). As T grows:
    beta (1 - beta) times half the variance, for 0 < beta < 1.

    Args:
        beta: 0 to 1.

    Raises:
        ValueError: ``beta`` outside 0 to 1.
    """

    def __init__(self, beta: float = 0.5) -> None:
        require_within("beta", beta)
        self.beta = beta

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        if self.beta in (0, 1):
            return (ReverseKL() if self.beta else ForwardKL())(student, teacher)
        teacher_ratio = bounded_ratio(student.log_probs, teacher.log_probs)
        student_ratio = minus_log_mixture(teacher_ratio, self.beta)
        of_student = torch.linalg.vecdot(student.probs, student_ratio)
        of_teacher = torch.linalg.vecdot(teacher.probs, teacher_ratio.add_(student_ratio))
        gradient = student_ratio.sub_(of_student[:, None]).mul_(student.probs).mul_(1 - self.beta)
        return self.beta * of_teacher + (1 - self.beta) * of_student, gradient


class SkewedForwardKL:
    """KL(p || m), m = alpha p + (1 - alpha) q (DistiLLM, Ko et al. 2024, arXiv 2402.03898, §3.1).

    With alpha 0 it is forward KL; a little of p in m keeps its gradient bounded. As T grows: (1 - alpha)^2 times half
    the variance.

    Args:
        alpha: 0 to 1, 1 excluded; the paper takes 0.1.

    Raises:
        ValueError: ``alpha`` is none of these.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        _require_skew(alpha)
        self.alpha = alpha

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        if self.alpha == 0:
            return ForwardKL()(student, teacher)
        ratio = bounded_ratio(student.log_probs, teacher.log_probs)
        student_ratio = minus_log_mixture(ratio, self.alpha)  # log q / m
        values = torch.linalg.vecdot(teacher.probs, ratio.add_(student_ratio))
        pulled = student_ratio.exp_().mul_(teacher.probs)  # p q / m
        gradient = student.probs.mul_(pulled.sum(-1, keepdim=True)).sub_(pulled)
        return values, gradient.mul_(1 - self.alpha)


class SkewedReverseKL:
    """KL(q || m), m = (1 - alpha) p + alpha q (DistiLLM, Ko et al. 2024, arXiv 2402.03898, §3.1).

    With alpha 0 it is reverse KL; a little of q in m bounds it where the teacher holds a token impossible. As T grows:
    (1 - alpha)^2 times half the variance.

    Args:
        alpha: 0 to 1, 1 excluded; the paper takes 0.1.

    Raises:
        ValueError: ``alpha`` is none of these.
    """

    def __init__(self, alpha: float = 0.1) -> None:
        _require_skew(alpha)
        self.alpha = alpha

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        if self.alpha == 0:
            return ReverseKL()(student, teacher)
        student_ratio = minus_log_mixture(bounded_ratio(student.log_probs, teacher.log_probs), 1 - self.alpha)
        values = torch.linalg.vecdot(student.probs, student_ratio)
        slope = student_ratio.sub_(student_ratio.exp().mul_(self.alpha))  # but for a constant, which falls out
        mean = torch.linalg.vecdot(student.probs, slope)
        return values, slope.sub_(mean[:, None]).mul_(student.probs)


def bounded_ratio(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """log p - log q in the place of ``log_p``; 0 where both are excluded."""
    return log_p.sub_(log_q).nan_to_num_(nan=0.0).clamp_(-_MOST, _MOST)


def minus_log_mixture(ratio: torch.Tensor, teacher_share: float) -> torch.Tensor:
    """log q / m for m = teacher_share * p + (1 - teacher_share) * q, from log p / q."""
    return ratio.expm1().mul_(teacher_share).log1p_().neg_()


def _require_skew(alpha: float) -> None:
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha={alpha}: must be from 0 to less than 1")
