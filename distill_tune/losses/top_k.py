"""Any divergence over the teacher's likeliest tokens and the mass of the rest."""

import torch

from distill_tune.losses.divergences import Distribution, Divergence, ForwardKL


class TopK:
    """``divergence`` between distributions over k + 1 events: the teacher's k likeliest tokens, and any other token.

    What the teacher thinks of its tail beyond its mass is not looked at; a student is free to fill it as it likes. As T
    grows both put (v - k) / v on the rest, and what is compared fades.

    Args:
        k: how many tokens, 1 or more; all of them where the vocabulary has no more.
        divergence: default forward KL.

    Raises:
        ValueError: ``k`` below 1.
    """

    def __init__(self, k: int = 64, divergence: Divergence | None = None) -> None:
        if k < 1:
            raise ValueError(f"k={k}: must be at least 1")
        self.k = k
        self.divergence = divergence or ForwardKL()

    def __call__(self, student: Distribution, teacher: Distribution) -> tuple[torch.Tensor, torch.Tensor]:
        if self.k >= student.probs.shape[-1]:
            return self.divergence(student, teacher)
        tokens = teacher.probs.topk(self.k).indices
        student_tail = student.probs.scatter(1, tokens, 0.0)
        student_rest = student_tail.sum(-1, keepdim=True)
        teacher_rest = teacher.probs.scatter(1, tokens, 0.0).sum(-1, keepdim=True)
        values, gradient = self.divergence(
            _grouped(student, tokens, student_rest, log_of_rest(student_rest)),
            _grouped(teacher, tokens, teacher_rest, teacher_rest.log()),
        )
        # Logits of the rest share its gradient by their probability within it.
        of_rest = student_tail.mul_(gradient[:, -1:] / student_rest.clamp(min=torch.finfo(torch.float32).tiny))
        return values, of_rest.scatter_(1, tokens, gradient[:, :-1])


def log_of_rest(rest: torch.Tensor) -> torch.Tensor:
    """Of the student's mass beyond some tokens: too little for float32 is very unlikely, not impossible."""
    return rest.clamp(min=torch.finfo(torch.float32).tiny).log()


def _grouped(of: Distribution, tokens: torch.Tensor, rest: torch.Tensor, log_rest: torch.Tensor) -> Distribution:
    """Over the chosen tokens and the rest, ``[n, k + 1]``."""
    return Distribution(
        torch.cat([of.log_probs.gather(1, tokens), log_rest], 1), torch.cat([of.probs.gather(1, tokens), rest], 1)
    )
