"""Tokens of the same bytes compared as they are, all others by their rank."""

from typing import ClassVar

import torch

from distill_tune.losses.aligned import AlignedWord
from distill_tune.losses.divergences import Distribution, require_within
from distill_tune.losses.mixture_divergences import bounded_ratio, minus_log_mixture
from distill_tune.losses.spans import spans_of, sums_of_spans
from distill_tune.losses.universal_logit import ranked


class Gold:
    """w * JSD_beta over shared tokens + u * sum_i |q_(i) - p_(i)| over all others (GOLD, Patiño et al. 2025).

    As TRL's GOLDTrainer has it with ``uld_use_hybrid_loss``, once a span, where it begins. A span reaches from one
    common boundary to the next. q is what the student's row at its start says of the next token, times the
    probabilities of the student's later tokens in the span; p is the same of the teacher. So of a span of one token
    they are distributions; of a longer one the entry of the token that is there is the probability of the whole span,
    and all entries are smaller: it counts less the less sure its later tokens are.

    Shared are tokens of the same bytes. beta p log(p/m) + (1 - beta) q log(q/m), m = beta p + (1 - beta) q, is summed
    over them as they are: neither is made to sum to 1, and no sum is below 0. With ``beta`` 0 it is forward KL, sum(p
    log(p/q) - p + q), with 1 reverse KL, to which JSD_beta / beta and JSD_beta / (1 - beta) tend. The last two terms,
    which TRL leaves out, keep them from falling below 0 where mass is on other tokens. All others are compared by rank,
    as :class:`~distill_tune.losses.UniversalLogit` does, and fall with 1/T alone as T grows. Where all tokens are
    shared, as with one tokenizer, it is :class:`~distill_tune.losses.JensenShannon` by default.

    TRL's default takes the row behind the one that predicts a span, finds shared tokens by how they are written, which
    differs in marks of a word's start, and has a mean over a sequence's spans, then over sequences. Here sums are
    divided by the student's tokens.

    Args:
        beta: 0 to 1.
        matched_weight: w; default the share of the teacher's tokens that are shared, as in TRL.
        unmatched_weight: u; default 1 less that share.

    Raises:
        ValueError: ``beta`` outside 0 to 1, a weight below 0, or one weight without the other.
    """

    aligned: ClassVar[bool] = True

    def __init__(
        self, beta: float = 0.5, matched_weight: float | None = None, unmatched_weight: float | None = None
    ) -> None:
        require_within("beta", beta)
        if (matched_weight is None) != (unmatched_weight is None):
            raise ValueError("matched_weight and unmatched_weight: set both, or neither")
        for name, weight in (("matched_weight", matched_weight), ("unmatched_weight", unmatched_weight)):
            if weight is not None and weight < 0:
                raise ValueError(f"{name}={weight}: must be at least 0")
        self.beta = beta
        self.matched_weight = matched_weight
        self.unmatched_weight = unmatched_weight

    def __call__(
        self, student: Distribution, teacher: Distribution, targets: torch.Tensor, word: AlignedWord
    ) -> tuple[torch.Tensor, torch.Tensor]:
        classes, spans = word.classes, spans_of(word.on_cpu, len(word.targets)).to(targets.device)
        first, target = spans.first, targets[:, None]
        later_of_student = _later(student, targets, first, spans.of_student, len(spans))
        later_of_teacher = _later(teacher, word.targets, spans.first_of_teacher, spans.of_teacher, len(spans))

        matched, unmatched = self._weights(len(classes.shared_teacher), len(classes.teacher))
        log_q = student.log_probs[first[:, None], classes.shared_student].add_(later_of_student)
        log_p = teacher.log_probs[spans.first_of_teacher[:, None], classes.shared_teacher].add_(later_of_teacher)
        of_shared, slope = self._of_shared(log_q, log_p)
        q = student.probs[first[:, None], classes.unshared_student].mul_(later_of_student.exp())
        p = teacher.probs[spans.first_of_teacher[:, None], classes.unshared_teacher].mul_(later_of_teacher.exp())
        of_others, slope_of_others = ranked(q, p)
        of_spans = of_shared.mul_(matched).add_(of_others, alpha=unmatched)

        # For the merged numbers' logarithms; the sum of a span's is the slope for a later token's log-probability.
        for_first = student.probs.new_empty(len(spans), student.probs.shape[1])
        for_first[:, classes.shared_student] = slope.mul_(matched)
        for_first[:, classes.unshared_student] = slope_of_others.mul_(q).mul_(unmatched)
        total = torch.cat([for_first.sum(-1), for_first.new_zeros(1)])[spans.of_student]
        gradient = student.probs.mul_(total.neg()[:, None]).index_add_(0, first, for_first)
        gradient.scatter_add_(1, target, total.index_fill(0, first, 0.0)[:, None])
        return of_spans.new_zeros(len(targets)).index_copy_(0, first, of_spans), gradient

    def _weights(self, num_shared: int, teacher_vocab_size: int) -> tuple[float, float]:
        if self.matched_weight is not None and self.unmatched_weight is not None:
            return self.matched_weight, self.unmatched_weight
        share = num_shared / teacher_vocab_size
        return share, 1 - share

    def _of_shared(self, log_q: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergence ``[m]`` of numbers that need not sum to 1, and its slope for each ``log q``, ``[m, k]``."""
        q, p = log_q.exp(), log_p.exp()
        ratio = bounded_ratio(log_q, log_p)
        if self.beta == 0:
            slope = q - p
            return torch.linalg.vecdot(p, ratio) + slope.sum(-1), slope
        if self.beta == 1:
            slope = ratio.mul_(q).neg_()
            return (slope + p).sub_(q).sum(-1), slope
        from_mixture = minus_log_mixture(ratio.clone(), self.beta)  # log q / m
        of_teacher = torch.linalg.vecdot(p, ratio.add_(from_mixture))
        slope = from_mixture.mul_(q).mul_(1 - self.beta)
        return self.beta * of_teacher + slope.sum(-1), slope


def _later(of: Distribution, tokens: torch.Tensor, first: torch.Tensor, span: torch.Tensor, m: int) -> torch.Tensor:
    """The log-probability of a span's tokens behind its first one, ``[m, 1]``."""
    log_probs = of.log_probs.gather(1, tokens[:, None]).squeeze(1).index_fill_(0, first, 0.0)
    return sums_of_spans(log_probs, span, m).float()[:, None]
