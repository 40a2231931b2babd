"""An exported folder beside its source: tokens, chat rendering, ends and logits."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch

from distill_tune.export.check import Check
from distill_tune.export.opened import Opened
from distill_tune.export.source import Source
from distill_tune.export.texts import TEXTS, Rows, written_turns


@dataclasses.dataclass(frozen=True)
class Agreement:
    """
    Attributes:
        tokens: how many positions were compared.
        max_difference: the largest of two logits of one token at one position.
        kl: mean KL(source || exported), nats a token.
        top: share of positions whose likeliest token is the same.
    """

    tokens: int
    max_difference: float
    kl: float
    top: float


NONE = Agreement(0, math.nan, math.nan, math.nan)  # of what could not be opened


def agreement(source: Iterable[torch.Tensor], exported: Iterable[torch.Tensor]) -> Agreement:
    """
    Args:
        source, exported: of each row the logits ``[s, v]``; padding of one vocabulary, which the other lacks, is left
            out.
    """
    tokens, same, divergence, largest = 0, 0, 0.0, 0.0
    for one, other in zip(source, exported, strict=True):
        v = min(one.shape[-1], other.shape[-1])
        one, other = one[:, :v].double(), other[:, :v].double()
        log_probs, other_log_probs = one.log_softmax(-1), other.log_softmax(-1)
        divergence += torch.nn.functional.kl_div(other_log_probs, log_probs, reduction="sum", log_target=True).item()
        largest = max(largest, (one - other).abs().max().nan_to_num(nan=torch.inf).item())
        same += int((one.argmax(-1) == other.argmax(-1)).sum())
        tokens += len(one)
    return Agreement(tokens, largest, divergence / tokens, same / tokens)


def compare(
    source: Source, stops: Sequence[int], logits: Sequence[torch.Tensor], rows: Rows, opened: Opened, max_kl: float
) -> tuple[list[Check], Agreement]:
    """
    Args:
        stops: where the exported model is to end an answer.
        logits: the source's, of ``rows``.
        max_kl: beyond this mean divergence it has not passed.
    """
    read = [row[: opened.longest] for row in rows.tokens]
    measured = agreement([of_row[: opened.longest] for of_row in logits], map(opened.logits, read))
    checks = [*_of_tokenizer(source, opened), *_of_stops(stops, opened), *opened.checks]
    within = measured.kl <= max_kl  # not for what is no number
    told = f"mean KL {measured.kl:.2g} nats a token (bound {max_kl:g}), on {measured.tokens:,} tokens of {rows.told}"
    checks.append(Check("distributions", told, within))
    told = f"differ by {measured.max_difference:.2g} at most; the likeliest token is the same at {measured.top:.1%}"
    checks.append(Check("logits", told, within))
    return checks, measured


def _of_tokenizer(source: Source, opened: Opened) -> list[Check]:
    own = source.tokenizer.transformers_tokenizer
    wanted, rendered = written_turns(own), written_turns(opened.tokenizer)
    texts = [text for text in (*(opened.texts or TEXTS), wanted) if text]
    differing = [text for text in texts if own(text)["input_ids"] != opened.tokenizer(text)["input_ids"]]
    found = f"the same of {len(texts)} texts" if not differing else f"other ones of {differing[0][:40]!r}"
    checks = [Check("token ids", found, not differing)]
    if not wanted and not rendered:
        return [*checks, Check("chat template", "none, as the source", True)]
    found = "writes a conversation of three turns the same" if wanted == rendered else f"writes {rendered[:60]!r}"
    return [*checks, Check("chat template", found, wanted == rendered)]


def _of_stops(stops: Sequence[int], opened: Opened) -> list[Check]:
    if opened.stops is None:
        return []
    found = f"{', '.join(map(str, sorted(opened.stops))) or 'none'}"
    room = len(stops) if opened.room is None else opened.room
    is_same = opened.stops <= set(stops) and len(opened.stops) >= min(len(set(stops)), room)
    wanted = "" if is_same else f"; it should be {', '.join(map(str, sorted(stops))) or 'none'}"
    return [Check("end tokens", f"{found}{wanted}", is_same)]
