"""Perplexity, agreement with the teacher, divergence from it, speed and memory."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import Batch
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.models.output_head import output_head, take_output_head

from torchtune.modules import TransformerDecoder

_CHUNK_ROWS = 1024  # rows of logits that are alive at once


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model over held-out rows.

    Attributes:
        name: for the table.
        parameters: their number.
        perplexity: exp of the mean cross-entropy over supervised tokens.
        agreement: share of supervised positions where its likeliest token is the teacher's.
        kl: mean KL(teacher || model) over supervised positions, nats.
        tokens_per_second: all tokens read, in one forward pass.
        peak_memory_bytes: what loading it and the forward pass took.
    """

    name: str
    parameters: int
    perplexity: float
    agreement: float
    kl: float
    tokens_per_second: float
    peak_memory_bytes: int


def compare(
    name: str,
    load: Callable[[], TransformerDecoder],
    teacher: TransformerDecoder,
    batches: Sequence[Batch],
    device: torch.device,
    common_vocab_size: int | None = None,
) -> Comparison:
    """Measure a model alone (perplexity, speed, memory), then beside the teacher.

    Args:
        load: gives the model; timed for memory, so it should do the loading.
        teacher: its own comparison gives agreement 1 and divergence 0.
        batches: held-out micro-batches.
        common_vocab_size: compare so many tokens, where vocabularies differ by padding rows.
    """
    with PeakMemory(device) as memory, torch.no_grad():
        model = load().eval()
        hidden_states, seconds = _hidden_states(model, batches, device)
        cross_entropy = 0.0
        for hidden, batch in zip(hidden_states, batches, strict=True):
            targets = batch.targets[0, batch.supervised_positions].to(device).split(_CHUNK_ROWS)
            for logits, wanted in zip(_logits(model, hidden), targets, strict=True):
                cross_entropy += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
    num_tokens = sum(map(len, hidden_states))
    agreement = divergence = 0.0
    with torch.no_grad():
        for hidden, teacher_hidden in zip(hidden_states, _hidden_states(teacher, batches, device)[0], strict=True):
            for logits, teacher_logits in zip(_logits(model, hidden), _logits(teacher, teacher_hidden), strict=True):
                v = common_vocab_size or logits.shape[-1]
                log_probs, teacher_log_probs = logits[:, :v].log_softmax(-1), teacher_logits[:, :v].log_softmax(-1)
                agreement += (log_probs.argmax(-1) == teacher_log_probs.argmax(-1)).sum().item()
                divergence += torch.nn.functional.kl_div(
                    log_probs, teacher_log_probs, reduction="sum", log_target=True
                ).item()
    return Comparison(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        perplexity=math.exp(cross_entropy / num_tokens),
        agreement=agreement / num_tokens,
        kl=divergence / num_tokens,
        tokens_per_second=sum(batch.tokens.numel() for batch in batches) / seconds,
        peak_memory_bytes=memory.bytes,
    )


def share_of_gap_closed(base: float, teacher: float, student: float) -> float:
    """How much of the way from base to teacher a student went, by the logarithm of their perplexities; 1 is all."""
    return (math.log(base) - math.log(student)) / (math.log(base) - math.log(teacher))


def _hidden_states(
    model: TransformerDecoder, batches: Sequence[Batch], device: torch.device
) -> tuple[list[torch.Tensor], float]:
    """Last hidden states ``[n, d]`` at each batch's supervised positions, and the seconds of the forward passes."""
    take_output_head(model)
    batches = [batch.to(device) for batch in batches]
    model(batches[0].tokens, **batches[0].attention())  # the first call is slower
    hidden_states = []
    started = _seconds(device)
    for batch in batches:
        hidden_states.append(model(batch.tokens, **batch.attention())[0, batch.supervised_positions])
    return hidden_states, _seconds(device) - started


def _seconds(device: torch.device) -> float:
    """The time when all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _logits(model: TransformerDecoder, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
    """fp32 logits ``[c, v]``, a chunk of rows at a time."""
    project = output_head(model).project
    yield from (project(rows).float() for rows in hidden.split(_CHUNK_ROWS))
