"""What was kept of a teacher's distribution for each position: tokens drawn from it, or its likeliest and the rest."""

import dataclasses
from typing import ClassVar

import torch

from distill_tune.losses.divergences import HUGE, Distribution, Divergence
from distill_tune.losses.record import Record
from distill_tune.losses.top_k import TopK

_PART_BYTES = 64 * 2**20  # so much of a float64 distribution is made at a time, while a record is


@dataclasses.dataclass(frozen=True)
class SampledTokens(Record):
    """Tokens drawn from the teacher: forward KL whose mean over draws, and its gradient's, are those of all tokens.

    Random sampling KD (Anshumann et al. 2025, arXiv 2503.16870). The k likeliest tokens alone would tell the student
    that no other occurs; drawn tokens tell it of the tail as often as it occurs. With weights w and the teacher's
    entropy H the divergence is -sum w log q - H, of a single token also below 0, and its gradient sum(w) q - w.

    Attributes:
        ids: distinct tokens of each row, ``[n, k]``, int32 or int64; 0 with a weight of 0 where a row has fewer.
        weights: the share of draws that gave the token, or where they came from another distribution, that times
            p(token) over the other one; never normalised. ``[n, k]``, float32.
        entropy: of the teacher's whole distribution at ``temperature``, in nats, ``[n]``, float32.
        temperature: p is softmax(logits / temperature).
        vocab_size: v, of the logits that it was made from.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    entropy: torch.Tensor
    temperature: float
    vocab_size: int

    kind: ClassVar[str] = "sampled"
    fill: ClassVar[float] = 0.0

    @property
    def is_token(self) -> torch.Tensor:
        """``[n, k]``; False for what only fills a row."""
        return self.weights > 0

    def serving(self, divergence: Divergence) -> "SampledTokens":
        return self

    def compared(self, student: Distribution, divergence: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward KL of each row ``[n]``, its gradient for the logits of the tokens and the rest ``[n, k + 1]``.

        Args:
            student: over the record's tokens and the rest, ``[n, k + 1]``; may be overwritten.
        """
        weights = self.weights.float()
        log_probs = student.log_probs[:, :-1].clamp(min=-HUGE)  # 0 * -inf must be 0
        gradient = student.probs.mul_(weights.sum(-1, keepdim=True))
        gradient[:, :-1] -= weights
        return -torch.linalg.vecdot(weights, log_probs) - self.entropy, gradient

    @classmethod
    def drawn(
        cls,
        logits: torch.Tensor,
        draws: int = 50,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        proposal_temperature: float | None = None,
    ) -> "SampledTokens":
        """Draws from softmax(logits / proposal_temperature), one from each of ``draws`` equal shares of its mass.

        Stratified so, the mean stays what it is, and a token's count is never further from its expectation than two.

        Args:
            logits: ``[n, v]``, after any cap; not overwritten.
            draws: a row; distinct tokens are fewer.
            generator: of the device of ``logits``.
            proposal_temperature: default ``temperature``.

        Raises:
            ValueError: ``draws`` below 1, a temperature not above 0.
        """
        proposal_temperature = proposal_temperature or temperature
        if draws < 1 or temperature <= 0 or proposal_temperature <= 0:
            raise ValueError(
                f"draws={draws}, temperature={temperature}, proposal_temperature={proposal_temperature}: "
                "must be at least 1, and above 0"
            )
        n, v = logits.shape
        ids = torch.zeros(n, draws, dtype=torch.int32, device=logits.device)
        weights = torch.zeros(n, draws, device=logits.device)
        entropy = torch.empty(n, device=logits.device)
        num_distinct = 0
        rows = max(1, _PART_BYTES // (8 * v))
        for start in range(0, n, rows):
            part = slice(start, start + rows)
            probs = (logits[part].float() / temperature).softmax(-1)
            entropy[part] = torch.special.entr(probs).sum(-1)
            proposal = probs
            if proposal_temperature != temperature:
                proposal = (logits[part].float() / proposal_temperature).softmax(-1)
            tokens = _stratified(proposal, draws, generator)
            is_first = torch.ones_like(tokens, dtype=torch.bool)
            is_first[:, 1:] = tokens[:, 1:] != tokens[:, :-1]
            column = is_first.cumsum(-1) - 1
            ids[part] = ids[part].scatter(1, column, tokens.int())
            of_draw = weights.new_full(tokens.shape, 1 / draws)
            if proposal is not probs:
                of_draw = of_draw * probs.gather(1, tokens) / proposal.gather(1, tokens)
            weights[part] = weights[part].scatter_add(1, column, of_draw)
            num_distinct = max(num_distinct, int(column.max()) + 1)
        # Copies, so that the columns that none needs are given back.
        return cls(ids[:, :num_distinct].clone(), weights[:, :num_distinct].clone(), entropy, temperature, v)


@dataclasses.dataclass(frozen=True)
class TopTokens(Record):
    """The teacher's likeliest tokens and the mass of all others: any divergence over these k + 1 events.

    It is what :class:`~distill_tune.losses.TopK` compares, kept. The tokens alone are never made to add up to 1.

    The student's likeliest may be among them as well. Reverse KL is then the generalised KL of MOPD (eq. 5), the sum of
    q log(q / p) - q + p over the tokens of both, with the rest as one event more: over all events -q + p adds up to
    nothing. No term is below 0, and more tokens bring it nearer to that of the whole vocabulary, from below.

    Attributes:
        ids: distinct tokens of each row, ``[n, k]``, int32 or int64; any with a log-probability of -inf where a row has
            fewer.
        log_probs: at ``temperature``, ``[n, k]``, float32.
        log_rest: of all other tokens together, -inf where there is none, ``[n]``, float32.
        temperature: p is softmax(logits / temperature).
        vocab_size: v, of the logits that it was made from.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor
    log_rest: torch.Tensor
    temperature: float
    vocab_size: int

    kind: ClassVar[str] = "top_k"
    fill: ClassVar[float] = -torch.inf

    @property
    def is_token(self) -> torch.Tensor:
        """``[n, k]``; False for what only fills a row."""
        return self.log_probs > -torch.inf

    def serving(self, divergence: Divergence) -> "TopTokens":
        """The record with no more tokens than a :class:`TopK` looks at."""
        if not isinstance(divergence, TopK) or divergence.k >= self.ids.shape[1]:
            return self
        log_probs, kept = self.log_probs.topk(divergence.k)
        others = self.log_probs.scatter(1, kept, -torch.inf)
        log_rest = torch.cat([others, self.log_rest[:, None]], 1).logsumexp(-1)
        return dataclasses.replace(self, ids=self.ids.gather(1, kept), log_probs=log_probs, log_rest=log_rest)

    def compared(self, student: Distribution, divergence: Divergence) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergence of each row ``[n]``, its gradient for the logits of the tokens and the rest ``[n, k + 1]``.

        Args:
            student: over the record's tokens and the rest, ``[n, k + 1]``; may be overwritten.
        """
        # Of all k + 1 events together: where they were stored in few bits, their sum is no longer 1.
        log_probs = torch.cat([self.log_probs, self.log_rest[:, None]], 1).float().log_softmax(-1)
        if isinstance(divergence, TopK):
            divergence = divergence.divergence
        return divergence(student, Distribution(log_probs, log_probs.exp()))

    @classmethod
    def of(
        cls, logits: torch.Tensor, k: int = 50, temperature: float = 1.0, others: torch.Tensor | None = None
    ) -> "TopTokens":
        """
        Args:
            logits: ``[n, v]``, after any cap; not overwritten.
            k: how many tokens; all of them where the vocabulary has no more.
            others: tokens of each row that are kept as well, ``[n, j]``; those that are there already only fill it.

        Raises:
            ValueError: ``k`` below 1, a temperature not above 0.
        """
        if k < 1 or temperature <= 0:
            raise ValueError(f"k={k}, temperature={temperature}: must be at least 1, and above 0")
        n, v = logits.shape
        rows = max(1, _PART_BYTES // (8 * v))
        kept = []
        for start in range(0, n, rows):
            log_probs = (logits[start : start + rows].float() / temperature).log_softmax(-1)
            likeliest, ids = log_probs.topk(min(k, v))
            if others is not None:
                more = others[start : start + rows].to(ids)
                likeliest = torch.cat([likeliest, log_probs.gather(1, more)], 1)
                ids = torch.cat([ids, more], 1)
                likeliest = likeliest.masked_fill(_repeats(ids), -torch.inf)
            kept.append((ids.int(), likeliest, log_probs.scatter_(1, ids, -torch.inf).logsumexp(-1)))
        tokens, likeliest, log_rest = (torch.cat(parts) for parts in zip(*kept, strict=True))
        return cls(tokens, likeliest, log_rest, temperature, v)

    def beside(self, others: torch.Tensor, log_probs: torch.Tensor) -> "TopTokens":
        """The record with more tokens, whose mass is taken from the rest.

        Where the rest has no more than float32 can tell from nothing, it keeps that much.

        Args:
            others: ``[n, j]``; those that are there already only fill it.
            log_probs: theirs, ``[n, j]``.
        """
        ids = torch.cat([self.ids, others.to(self.ids)], 1)
        together = torch.cat([self.log_probs, log_probs.to(self.log_probs)], 1).masked_fill(_repeats(ids), -torch.inf)
        rest = self.log_rest.double().exp()
        left = rest - together[:, self.ids.shape[1] :].double().exp().sum(-1)
        log_rest = torch.maximum(left, rest.clamp(max=torch.finfo(torch.float32).eps)).log().float()
        return dataclasses.replace(self, ids=ids, log_probs=together, log_rest=log_rest)


def _repeats(ids: torch.Tensor) -> torch.Tensor:
    """Which of each row's ids ``[n, k]`` have come before in it, ``[n, k]``."""
    order = ids.sort(dim=-1, stable=True)
    comes_again = torch.zeros_like(ids, dtype=torch.bool)
    comes_again[:, 1:] = order.values[:, 1:] == order.values[:, :-1]
    return comes_again.scatter(1, order.indices, comes_again)


SparseSignal = SampledTokens | TopTokens


def _stratified(probs: torch.Tensor, draws: int, generator: torch.Generator | None) -> torch.Tensor:
    """Tokens ``[n, draws]``, ascending, the j-th from the j-th of as many equal shares of a row's mass."""
    # In float32 the sum over a long tail would stand still: each of its tokens is lost beside 1.
    below = probs.cumsum(-1, dtype=torch.float64)
    total = below[:, -1:]
    shares = torch.arange(draws, device=probs.device, dtype=torch.float64)
    within = torch.rand(len(probs), draws, dtype=torch.float64, device=probs.device, generator=generator)
    at = torch.minimum((within + shares) / draws * total, torch.nextafter(total, torch.zeros_like(total)))
    # Of what is no number, none is found: a token past the last one would end a GPU's work for good.
    return torch.searchsorted(below, at, right=True).clamp_(max=probs.shape[1] - 1)
