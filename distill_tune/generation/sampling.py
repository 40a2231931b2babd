"""How the next token is chosen from a model's logits."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from distill_tune.errors import UserError

_GOLDEN = -7046029254386353131  # 2 ** 64 / the golden ratio, as a signed integer
_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685
# Where the CPU may look at the result, a few of the likeliest nearly always suffice; sorting all takes far longer.
_SORTED_FIRST: dict[str, tuple[int, ...]] = {"cpu": (64, 1024)}
_BLOCK = 256  # tokens


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _are_texts(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, str) for one in value)


def _are_whole(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str) and all(map(_is_whole, value))


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (_is_whole, "a whole number"),
    **dict.fromkeys(("temperature", "top_p", "min_p", "repetition_penalty"), (_is_number, "a number")),
    **dict.fromkeys(
        ("top_k", "max_repetitions"), (lambda value: value is None or _is_whole(value), "a whole number, or null")
    ),
    "stop": (_are_texts, "a list of texts"),
    "stop_token_ids": (_are_whole, "a list of token ids"),
}


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
        stop: an answer ends before the first of these texts; one text, or a list.
        stop_token_ids: tokens that end an answer, besides the model's own; one, or a list.

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
        for name, one in (("stop", str), ("stop_token_ids", int)):
            if isinstance(value := getattr(self, name), one):
                object.__setattr__(self, name, (value,))
        for name, (is_kind, wanted) in _KINDS.items():
            if not is_kind(value := getattr(self, name)):
                raise UserError(f"{name}={value}: must be {wanted}")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
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


def stream_of(*numbers: int) -> int:
    """The stream of random numbers of a sample that is told by these numbers, such as seed, step, row and sample.

    Returns:
        A signed 64-bit integer.
    """
    state = 0
    for number in numbers:
        state = _mixed_integer(state ^ _mixed_integer(number))
    return state - 2**64 if state >= 2**63 else state


def seeds_of(streams: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """What :func:`choose` draws from, for each stream at a position of its own, whatever was drawn before.

    Args:
        streams, positions: of one shape, or of shapes that can be made one; int64.

    Returns:
        Of that shape, int64.
    """
    return _mixed(streams + (positions + 1) * _GOLDEN)


def choose(
    logits: torch.Tensor, sampling: Sampling, seeds: torch.Tensor, seen: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row, by an exponential race: token i wins where its probability over an exponential number of
    its own is the largest. Other than where one number is held against the running sum of probabilities, rounding of
    the logits hardly ever makes another token win.

    Args:
        logits: ``[n, v]``, float32.
        seeds: ``[n]``; see :func:`seeds_of`.
        seen: which tokens the row already has, ``[n, v]``, bool; only with a repetition penalty.

    Returns:
        Tokens ``[n]``, int64, and their log-probabilities ``[n]``, float32: the model's own, at temperature 1 and
        before any filter and penalty.
    """
    changed = logits
    if seen is not None:
        penalty = sampling.repetition_penalty
        changed = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.temperature == 0:
        tokens = changed.argmax(-1)
    else:
        if sampling.temperature != 1:  # however small it is, the likeliest stays a number
            changed = (changed - changed.amax(-1, keepdim=True)).div_(sampling.temperature)
        weights = changed.softmax(-1)
        tokens = _winner(_filtered(weights, sampling), seeds)
        if seen is None and sampling.temperature == 1:
            return tokens, _of(weights, tokens).log_()
    return tokens, _of(logits, tokens) - logits.logsumexp(-1)


def _of(values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return values.gather(-1, tokens[:, None])[:, 0]


def _filtered(weights: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Weights ``[n, v]`` without those that the filters take."""
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
        bound = weights.amax(-1, keepdim=True) * sampling.min_p
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


def _winner(weights: torch.Tensor, seeds: torch.Tensor) -> torch.Tensor:
    """A token of each row with a probability in proportion to its weight, ``[n]``.

    First a block of tokens by its sum, then a token of the block: two races of a few hundred instead of one of all.

    Args:
        weights: ``[n, v]``, 0 or more, not all 0.
    """
    n, v = weights.shape
    blocks = (weights if v % _BLOCK == 0 else torch.nn.functional.pad(weights, (0, -v % _BLOCK))).view(n, -1, _BLOCK)
    of_block = blocks.sum(-1)
    numbers = _exponential(seeds, of_block.shape[1] + _BLOCK)
    block = (of_block / numbers[:, _BLOCK:]).argmax(-1, keepdim=True)
    of_token = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0]
    tokens = block[:, 0] * _BLOCK + (of_token / numbers[:, :_BLOCK]).argmax(-1)
    return tokens.clamp_(max=v - 1)  # of weights that are no numbers it may be padding


def _exponential(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """So many exponential numbers for each seed, ``[n, count]``, float32, above 0."""
    counter = torch.arange(1, count + 1, device=seeds.device) * _GOLDEN
    bits = _shifted(_mixed(seeds[:, None] + counter), 41)  # 23 bits, whose middle float32 has exactly
    return bits.float().add_(0.5).mul_(2.0**-23).log_().neg_()


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """SplitMix64's output function (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195, figure 17)."""
    bits = (bits ^ _shifted(bits, 30)) * _MIX_1
    bits = (bits ^ _shifted(bits, 27)) * _MIX_2
    return bits ^ _shifted(bits, 31)


def _shifted(bits: torch.Tensor, by: int) -> torch.Tensor:
    """Shifted to the right as an unsigned integer."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mixed_integer(number: int) -> int:
    bits = (number + (_GOLDEN & (2**64 - 1))) & (2**64 - 1)
    bits = ((bits ^ (bits >> 30)) * (_MIX_1 & (2**64 - 1))) & (2**64 - 1)
    bits = ((bits ^ (bits >> 27)) * (_MIX_2 & (2**64 - 1))) & (2**64 - 1)
    return bits ^ (bits >> 31)
