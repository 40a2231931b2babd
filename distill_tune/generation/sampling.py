"""How the next token is chosen from a model's logits."""

import dataclasses
from collections.abc import Sequence

import torch

from distill_tune.errors import UserError

_GOLDEN = -7046029254386353131  # 2 ** 64 / the golden ratio, as a signed integer
_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685
# Where the CPU may look at the result, a few of the likeliest nearly always suffice; sorting all takes far longer.
_SORTED_FIRST: dict[str, tuple[int, ...]] = {"cpu": (64, 1024)}
_BELOW_ONE = 1 - 2.0**-23  # so that rounding in float32 does not pass a sum's end
_BLOCK = 64  # tokens; the distribution function is summed in blocks of so many


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which tokens may follow, and how long an answer may become.

    Filters are taken in this order, each on what the one before has left: ``top_k``, ``top_p``, ``min_p``.

    Args:
        max_new_tokens: an answer is cut there.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only so many of the likeliest tokens; None for all.
        top_p: only the likeliest that have this much of the probability together (arXiv 1904.09751, §3.1).
        min_p: only those with this much of the likeliest one's probability (arXiv 2407.01082, §3).
        repetition_penalty: logits of tokens that the row already has become less likely by this factor
            (arXiv 1909.05858, §4.1); 1 leaves them.
        max_repetitions: an answer is cut once it ends with the same few tokens so many times in a row; null: never.
        stop: an answer ends before the first of these texts.
        stop_token_ids: tokens that end an answer, besides the model's own.

    Raises:
        UserError: a value out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_repetitions: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 1, "1 or more, or null for all tokens"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p < 1, "0 or more, below 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1 for none"),
            ("max_repetitions", self.max_repetitions is None or self.max_repetitions >= 2, "2 or more, or null"),
            ("stop", all(self.stop), "texts that are not empty"),
        ):
            if not fits:
                raise UserError(f"{name}={getattr(self, name)}: must be {wanted}")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))


def stream_of(*numbers: int) -> int:
    """The stream of random numbers of a sample that is told by these numbers, such as seed, step, row and sample.

    Returns:
        A signed 64-bit integer.
    """
    state = 0
    for number in numbers:
        state = _mixed_integer(state ^ _mixed_integer(number))
    return state - 2**64 if state >= 2**63 else state


def uniform(streams: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A random number for each stream at a position of its own, whatever was drawn before: SplitMix64's output function
    (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195, figure 17) of a counter.

    Args:
        streams, positions: of one shape, or of shapes that can be made one; int64.

    Returns:
        Of that shape, float32, in 0..1, 1 excluded.
    """
    bits = streams + (positions + 1) * _GOLDEN
    bits = (bits ^ _shifted(bits, 30)) * _MIX_1
    bits = (bits ^ _shifted(bits, 27)) * _MIX_2
    return _shifted(bits ^ _shifted(bits, 31), 40).float() * 2.0**-24


def choose(
    logits: torch.Tensor, sampling: Sampling, random: torch.Tensor, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row.

    Args:
        logits: ``[n, v]``, float32.
        random: ``[n]``, in 0..1; the token is where the distribution function passes it.
        seen: which tokens the row already has, ``[n, v]``, bool; only with a repetition penalty.

    Returns:
        Tokens ``[n]``, int64, and their log-probabilities ``[n]``, float32: the model's own, at temperature 1 and
        before any filter and penalty.
    """
    if seen is None and sampling.temperature == 1:
        weights = (logits - logits.amax(-1, keepdim=True)).exp_()
        tokens = _passed(_filtered(weights, sampling), random)
        return tokens, _of(weights, tokens).log_() - weights.sum(-1).log_()
    changed = logits
    if seen is not None:
        penalty = sampling.repetition_penalty
        changed = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        tokens = changed.argmax(-1)
    else:
        weights = (changed - changed.amax(-1, keepdim=True)).div_(sampling.temperature).exp_()
        tokens = _passed(_filtered(weights, sampling), random)
    return tokens, _of(logits, tokens) - logits.logsumexp(-1)


def _of(values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, tokens[:, None])[:, 0]


def _filtered(weights: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Weights ``[n, v]``, the largest of each row 1, without those that the filters take."""
    least = _least_weight(weights, sampling)
    return weights if least is None else weights * (weights >= least)


def _least_weight(weights: torch.Tensor, sampling: Sampling) -> torch.Tensor | None:
    """What a token's weight must be to stay, ``[n, 1]``; None where all may."""
    least = None
    if sampling.top_k is not None and sampling.top_k < weights.shape[-1]:
        least = weights.topk(sampling.top_k).values[:, -1:]
    if sampling.top_p < 1:
        kept = weights if least is None else weights * (weights >= least)
        least = _least_of_nucleus(kept, sampling.top_p)
    if sampling.min_p > 0:
        bound = torch.full_like(weights[:, :1], sampling.min_p)
        least = bound if least is None else torch.maximum(least, bound)
    return least


def _least_of_nucleus(weights: torch.Tensor, top_p: float) -> torch.Tensor:
    """The least weight among the likeliest tokens that have ``top_p`` of the sum together, ``[n, 1]``."""
    wanted = top_p * weights.sum(-1, keepdim=True)
    for size in (*_SORTED_FIRST.get(weights.device.type, ()), weights.shape[-1]):
        largest = weights.topk(min(size, weights.shape[-1])).values
        before = largest.cumsum(-1) - largest
        if size >= weights.shape[-1] or bool((before[:, -1:] >= wanted).all()):
            break
    number = (before < wanted).sum(-1, keepdim=True) - 1
    return largest.gather(-1, number.clamp_(min=0))


def _passed(weights: torch.Tensor, random: torch.Tensor) -> torch.Tensor:
    """The first token at which the sum of weights passes ``random`` of all of them, ``[n]``.

    Args:
        weights: ``[n, v]``, 0 or more, not all 0.
    """
    n, v = weights.shape
    blocks = (weights if v % _BLOCK == 0 else torch.nn.functional.pad(weights, (0, -v % _BLOCK))).view(n, -1, _BLOCK)
    of_block = blocks.sum(-1)
    upto_block = of_block.cumsum(-1)
    bound = random * upto_block[:, -1]
    block = _first_above(upto_block, bound)  # [n, 1]
    rest = bound[:, None] - (upto_block.gather(-1, block) - of_block.gather(-1, block))
    within = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0].cumsum(-1)
    return (block * _BLOCK + _first_above(within, rest[:, 0]))[:, 0]


def _first_above(sums: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """Where sums ``[n, k]`` pass a bound ``[n]`` or reach their end, ``[n, 1]``; never where nothing is added."""
    bound = torch.minimum(bound, sums[:, -1] * _BELOW_ONE).clamp_(min=0)
    return torch.searchsorted(sums, bound[:, None], right=True)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted to the right as an unsigned integer."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mixed_integer(number: int) -> int:
    bits = (number + (_GOLDEN & (2**64 - 1))) & (2**64 - 1)
    bits = ((bits ^ (bits >> 30)) * (_MIX_1 & (2**64 - 1))) & (2**64 - 1)
    bits = ((bits ^ (bits >> 27)) * (_MIX_2 & (2**64 - 1))) & (2**64 - 1)
    return bits ^ (bits >> 31)
