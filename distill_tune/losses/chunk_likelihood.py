"""How likely both models hold the same bytes, each by its own tokens: a loss that needs no common vocabulary."""

from typing import ClassVar

import torch

from distill_tune.losses.aligned import AlignedPositions, AlignedWord
from distill_tune.losses.divergences import Distribution, Divergence, ForwardKL
from distill_tune.losses.spans import spans_of, sums_of_spans

_LEAST = 1e-30  # nats by which a text falls short of certainty, for a logarithm of that


class ChunkLikelihood:
    """tau * D(P_t^(1/tau) || P_s^(1/tau)) of two events, a span's text and any other (ALM, arXiv 2503.20083).

    A span reaches from one common boundary to the next. P is the product of the probabilities that a model gives to its
    own tokens of the span, one or several. With a = -log P_t and b = -log P_s forward KL has the slope 1 - (1 -
    P_t^(1/tau)) / (1 - P_s^(1/tau)) for b, and as tau grows it tends to b - a + a log(a / b): a student that is less
    sure of the text than the teacher is made surer, one that is surer less so. Each of the span's rows has the slope
    times the gradient of its own -log q(y). What else the teacher might have said is not learned.

    A span counts once, where it begins; the paper has the mean over a sequence's spans. With one tokenizer each token
    is a span, and both are the same but for the factor tau, with which gradients keep their size as tau grows. At a
    temperature T both sides' probabilities are softened first; forward KL falls with 1/T^2.

    The paper's debiasing is not done (the probability that a word ends behind the span as a factor of P, spans joined
    where the teacher gives that less than 0.1): it takes more of the teacher than the probabilities of its own tokens,
    and those are all that :meth:`of_log_probs` needs, and all that :class:`~distill_tune.losses.TokenLikelihoods` have.
    So of a span that ends within a word P_t and P_s say a little different things, each that its own tokenizer would
    end a token there.

    Args:
        chunk_temperature: tau, 1 or more; the paper takes 100. At 1 the likelihoods themselves are compared, and a long
            span has little of them.
        divergence: D between two distributions over the two events; default forward KL.

    Raises:
        ValueError: ``chunk_temperature`` below 1.
    """

    aligned: ClassVar[bool] = True

    def __init__(self, chunk_temperature: float = 100.0, divergence: Divergence | None = None) -> None:
        if chunk_temperature < 1:
            raise ValueError(f"chunk_temperature={chunk_temperature}: must be at least 1")
        self.chunk_temperature = chunk_temperature
        self.divergence = divergence or ForwardKL()

    def __call__(
        self, student: Distribution, teacher: Distribution, targets: torch.Tensor, word: AlignedWord
    ) -> tuple[torch.Tensor, torch.Tensor]:
        of_own_tokens = teacher.log_probs.gather(1, word.targets[:, None]).squeeze(1)
        return self.of_log_probs(student, of_own_tokens, targets, word.on_cpu)

    def of_log_probs(
        self, student: Distribution, teacher: torch.Tensor, targets: torch.Tensor, positions: AlignedPositions
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`__call__`, of a teacher that says no more than how likely its own tokens are.

        Args:
            teacher: log-probabilities of the teacher's tokens, ``[c_t]``.
            positions: of the student's rows, on the CPU.
        """
        spans, tau = spans_of(positions, len(teacher)).to(targets.device), self.chunk_temperature
        target = targets[:, None]
        of_target = student.log_probs.gather(1, target)
        others = student.probs.scatter_(1, target, 0.0)
        rest = others.sum(-1, keepdim=True)
        # 1 - q(y) would have no digits where the student is sure, and the slope is large there.
        of_target = torch.where(rest < 0.5, rest.neg().log1p(), of_target).squeeze(1)
        of_student = _two_events(sums_of_spans(of_target, spans.of_student, len(spans)), tau)
        of_teacher = _two_events(sums_of_spans(teacher, spans.of_teacher, len(spans)), tau)
        not_the_text = of_student.probs[:, 1].clone()
        of_span, for_logits = self.divergence(of_student, of_teacher)
        # The logit of two events, log P - log(1 - P), falls by 1 / (1 - P) a nat that P is less likely.
        slope = -for_logits[:, 0] / not_the_text  # for b: tau times 1 / tau
        of_row = torch.cat([slope, slope.new_zeros(1)])[spans.of_student, None].float()
        gradient = others.mul_(of_row).scatter_(1, target, rest.mul_(-of_row))
        return rest.new_zeros(len(targets)).index_copy_(0, spans.first, (of_span * tau).float()), gradient


def _two_events(log_likelihood: torch.Tensor, tau: float) -> Distribution:
    """Of P^(1/tau) and the rest, from log P ``[m]``: ``[m, 2]``, float64."""
    log_prob = log_likelihood.clamp(max=-_LEAST) / tau
    rest = -log_prob.expm1()
    return Distribution(torch.stack([log_prob, rest.log()], 1), torch.stack([log_prob.exp(), rest], 1))
