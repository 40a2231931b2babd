"""How fast a model reads prompts and writes answers, one at a time and several, and how much memory that takes."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence

import torch

from distill_tune import generation
from distill_tune.data.batch import joined
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.evaluation.scoring import signal_of
from distill_tune.teachers import HuggingFace, LiveTeacher, Teacher

AT_ONCE = 16  # documents, beside one
_PASSES, _PASSES_OF_DECODING = 5, 3  # what one of them takes is a matter of chance
_DECODED = 16  # tokens of each row
_MOST = 512  # tokens of a document that are read

Speed = dict[str, dict[str, float]]


def loaded_and_timed(
    load: Callable[[], Teacher], context: int | None, documents: Sequence[Sequence[int]], device: torch.device
) -> tuple[Teacher, Speed, int]:
    """The loaded model, its tokens a second, and the bytes that loading it and these passes took.

    Args:
        context: tokens that it reads at once.
        documents: token ids; the first are read.

    Returns:
        ``prefill_tokens_per_second`` and ``decode_tokens_per_second`` of the model, of one row and of several, the
        median of some passes each; no decoding of a model that does not write answers.
    """
    with PeakMemory(device) as memory:
        model = load()
        speed: Speed = {"prefill_tokens_per_second": {}, "decode_tokens_per_second": {}}
        most = min(_MOST, context or _MOST)
        rows = [torch.tensor(list(tokens[:most])) for tokens in documents[:AT_ONCE]]
        for count in dict.fromkeys((1, len(rows))):
            speed["prefill_tokens_per_second"][str(count)] = _prefill(model, rows[:count], device)
            if isinstance(model, LiveTeacher | HuggingFace) and (rate := _decode(model, rows[:count], most, device)):
                speed["decode_tokens_per_second"][str(count)] = rate
    return model, speed, memory.bytes


@torch.no_grad()
def _prefill(model: Teacher, rows: Sequence[torch.Tensor], device: torch.device) -> float:
    """Tokens that go through the model a second, with the logits of each row's last, as before an answer."""
    labels = [torch.full_like(row, -100) for row in rows]
    for row, of_row in zip(rows, labels, strict=True):
        of_row[-1] = row[-1]
    batch = joined(list(zip(rows, labels, strict=True))).to(device)

    def read() -> None:
        signal = signal_of(model, batch)
        signal.logits(0, len(rows), signal.memory(len(rows)))

    return sum(map(len, rows)) / _median_seconds(read, device)


def _decode(model: LiveTeacher | HuggingFace, rows: Sequence[torch.Tensor], most: int, device: torch.device) -> float:
    """Tokens that are written a second behind the rows: what more of them take, without reading the rows; 0 where the
    clock cannot tell."""
    count = min(_DECODED, max(1, most // 2))
    prompts = [row[: most - count].tolist() for row in rows]
    sampling = generation.Sampling(count, temperature=0, max_repetitions=None)  # none ends before
    generator = generation.generator_of(model.model, (), sampling, max_slots=AT_ONCE)

    def answer(tokens: int) -> None:
        generator.generate([generation.Request(prompt, max_new_tokens=tokens) for prompt in prompts])

    works = (functools.partial(answer, tokens) for tokens in (count, 1))
    whole, first = (_median_seconds(work, device, _PASSES_OF_DECODING) for work in works)
    seconds = whole - first
    return (count - 1) * len(prompts) / seconds if seconds > 0 and count > 1 else 0.0


def _median_seconds(work: Callable[[], None], device: torch.device, passes: int = _PASSES) -> float:
    work()  # the first call is slower
    seconds = []
    for _ in range(passes):
        started = _now(device)
        work()
        seconds.append(_now(device) - started)
    return statistics.median(seconds)


def _now(device: torch.device) -> float:
    """The time when all that was begun on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
