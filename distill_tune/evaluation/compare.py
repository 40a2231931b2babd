"""Perplexity, agreement with the teacher, divergence from it, speed and memory."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import Batch
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.losses import Aligned
from distill_tune.losses.signals import MixtureOfTeachers, SumOfTeachers, TeacherSignal, capped
from distill_tune.teachers import AlignedTeacher, Teacher

_CHUNK_ROWS = 1024  # rows of logits that are alive at once
_PASSES = 5  # over the timed batches: what one of them takes is a matter of chance
_TIMED_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model over held-out rows.

    Attributes:
        name: for the table.
        parameters: their number.
        perplexity: exp of the mean cross-entropy over supervised tokens; of a teacher with another tokenizer, of the
            cross-entropy of the same answers over the tokens that the student has for them.
        agreement: share of supervised positions where its likeliest token is the teacher's; None where these have other
            tokenizers.
        kl: mean KL(teacher || model) over supervised positions, nats; None likewise.
        tokens_per_second: all tokens read, the median of some forward passes; None where it was not measured.
        peak_memory_bytes: what loading it and these passes took; None where it was not measured.
    """

    name: str
    parameters: int
    perplexity: float
    agreement: float | None
    kl: float | None
    tokens_per_second: float | None
    peak_memory_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A model that is to be compared.

    Attributes:
        name: for the table.
        parameters: their number.
        shape: what tells models that take as long and as much memory as one another.
        load: gives it, its weights on the device.
    """

    name: str
    parameters: int
    shape: object
    load: Callable[[], Teacher]


def compare(
    teacher: Entrant,
    others: Sequence[Entrant],
    batches: Sequence[Batch],
    device: torch.device,
    common_vocab_size: int | None = None,
) -> Iterator[Comparison]:
    """Measure the teacher, which stays loaded, then each of the others beside it, one after another.

    Speed and memory are measured of the first of each shape: of others they would differ by chance.

    Args:
        batches: held-out micro-batches.
        common_vocab_size: compare so many tokens, where vocabularies differ by padding rows.
    """
    seconds: float | None
    memory: int | None
    loaded, seconds, memory = _timed(teacher, batches, device)
    yield _measured(teacher, loaded, None, batches, device, common_vocab_size, seconds, memory)
    shapes = {teacher.shape}
    read = [_as_student_reads(batch) for batch in batches]
    for entrant in others:
        is_known = entrant.shape in shapes
        model, *figures = (entrant.load(), None, None) if is_known else _timed(entrant, read, device)
        shapes.add(entrant.shape)
        yield _measured(entrant, model, loaded, batches, device, common_vocab_size, *figures)
        del model


def share_of_gap_closed(base: float, teacher: float, student: float) -> float:
    """How much of the way from base to teacher a student went, by the logarithm of their perplexities; 1 is all."""
    return (math.log(base) - math.log(student)) / (math.log(base) - math.log(teacher))


@torch.no_grad()
def _timed(entrant: Entrant, batches: Sequence[Batch], device: torch.device) -> tuple[Teacher, float, int]:
    """The loaded model, its tokens a second, and the bytes that it took."""
    timed = batches[:_TIMED_BATCHES]
    with PeakMemory(device) as memory:
        model = entrant.load()
        on_device = [batch.to(device) for batch in timed]
        model(on_device[0])  # the first call is slower
        seconds = []
        for _ in range(_PASSES):
            started = _seconds(device)
            for batch in on_device:
                model(batch)
            seconds.append(_seconds(device) - started)
    return model, sum(sum(batch.teacher_lengths) for batch in timed) / statistics.median(seconds), memory.bytes


def _as_student_reads(batch: Batch) -> Batch:
    return dataclasses.replace(batch, teacher=None, others=())


@torch.no_grad()
def _measured(
    entrant: Entrant,
    model: Teacher,
    teacher: Teacher | None,
    batches: Sequence[Batch],
    device: torch.device,
    common_vocab_size: int | None,
    tokens_per_second: float | None,
    memory: int | None,
) -> Comparison:
    """
    Args:
        teacher: None where the model is the teacher itself.
    """
    cross_entropy = agreement = divergence = num_tokens = 0.0
    is_aligned = isinstance(teacher, AlignedTeacher)
    for batch in batches:
        batch = batch.to(device)
        targets = batch.targets[0, batch.supervised_positions]
        own = _signal(model, batch if teacher is None else _as_student_reads(batch))
        its = None if teacher is None or is_aligned else _signal(teacher, batch)
        if isinstance(own, Aligned):  # the same text in its own tokens, which is told for each of the rows'
            targets, own = own.targets, cast(TeacherSignal, own.signal)
        for start in range(0, len(targets), _CHUNK_ROWS):
            wanted = targets[start : start + _CHUNK_ROWS]
            logits = _logits(own, start, start + len(wanted), slot=1)
            cross_entropy += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
            if its is None:
                continue
            assert not isinstance(its, Aligned)
            teacher_logits = _logits(its, start, start + len(wanted), slot=2)
            v = common_vocab_size or logits.shape[-1]
            log_probs, teacher_log_probs = logits[:, :v].log_softmax(-1), teacher_logits[:, :v].log_softmax(-1)
            agreement += (log_probs.argmax(-1) == teacher_log_probs.argmax(-1)).sum().item()
            divergence += torch.nn.functional.kl_div(
                log_probs, teacher_log_probs, reduction="sum", log_target=True
            ).item()
        num_tokens += len(batch.supervised_positions)
        del own, its  # before the next ones are made
    return Comparison(
        name=entrant.name,
        parameters=entrant.parameters,
        perplexity=math.exp(cross_entropy / num_tokens),
        agreement=1.0 if teacher is None else None if is_aligned else agreement / num_tokens,
        kl=None if is_aligned else divergence / num_tokens,
        tokens_per_second=tokens_per_second,
        peak_memory_bytes=memory,
    )


def _seconds(device: torch.device) -> float:
    """The time when all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _signal(model: Teacher, batch: Batch) -> TeacherSignal | Aligned:
    """Of several teachers whose divergences are added up, their mixture."""
    signal = model(batch)
    if isinstance(signal, SumOfTeachers):
        return MixtureOfTeachers(cast(Sequence[TeacherSignal], signal.signals), signal.weights)  # of live ones
    return signal


def _logits(signal: TeacherSignal, start: int, stop: int, slot: int) -> torch.Tensor:
    """fp32, ``[stop - start, v]``."""
    return capped(signal.logits(start, stop, signal.memory(stop - start, slot)), signal.softcap).float()
