"""One model of an evaluation after another: loaded and timed, its documents scored, its prompts answered."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from distill_tune import generation
from distill_tune.evaluation.answering import Answered, answers
from distill_tune.evaluation.named_models import NamedModel
from distill_tune.evaluation.preparation import Prepared
from distill_tune.evaluation.results import Measured
from distill_tune.evaluation.scoring import PerToken, Reader, batches_of, score
from distill_tune.evaluation.speed import AT_ONCE, loaded_and_timed
from distill_tune.evaluation.tasks import Reached, Tasks, reached
from distill_tune.training.distributed import is_main_process, on_all_ranks, wait_for_all

Pace = Mapping[str, Any]  # speed and peak_memory_bytes of results.json


class Timed:
    """Loads models; the main process times the first of each shape, since others would differ by chance.

    Args:
        prepared: the models, and the documents that they read meanwhile.
        is_wanted: False times none.
    """

    def __init__(self, prepared: Prepared, device: torch.device, is_wanted: bool = True) -> None:
        self._prepared, self._device, self._is_wanted = prepared, device, is_wanted
        self._known: dict[object, Pace] = {}

    def load(self, model: NamedModel) -> tuple[Reader, Pace]:
        """All ranks call it.

        Raises:
            UserError: its files cannot be read.
        """
        key = (model.shape, model.tokenizer is None)
        if key in self._known or not self._is_wanted:
            nothing: Pace = {"speed": None, "peak_memory_bytes": None}
            return self._prepared.reader(model, model.load(self._device)), self._known.get(key, nothing)
        if is_main_process():
            context = self._prepared.reader(model, None).context
            loaded, speed, memory = loaded_and_timed(
                lambda: model.load(self._device), context, self._middle(model), self._device
            )
            self._known[key] = {"speed": speed, "peak_memory_bytes": memory}
        wait_for_all()  # which would else slow it down
        if not is_main_process():
            loaded = model.load(self._device)
            self._known[key] = {}
        return self._prepared.reader(model, loaded), self._known[key]

    def _middle(self, model: NamedModel) -> list[Sequence[int]]:
        """Of the documents those in the middle by length."""
        ordered = sorted((written.tokens for written in self._prepared.written(model)), key=len)
        first = max(0, len(ordered) // 2 - AT_ONCE // 2)
        return [tokens.tolist() for tokens in ordered[first : first + AT_ONCE]]


def scored_batches(
    prepared: Prepared,
    model: NamedModel,
    reader: Reader,
    teacher: Reader | None,
    numbers: Sequence[int],
    device: torch.device,
) -> Iterator[dict[int, PerToken]]:
    """Some of the documents by their numbers, scored some together, held against the teacher where that can be.

    Args:
        numbers: of the documents.

    Raises:
        UserError: the model's logits are no numbers.
    """
    written, beside = prepared.written(model), teacher if prepared.is_compared(model) else None
    as_teacher_reads = prepared.written(prepared.models[0])
    for together in batches_of([written[number] for number in numbers]):
        batch = [numbers[place] for place in together]
        of_teacher = [as_teacher_reads[number] for number in batch]
        found = score(reader, [written[number] for number in batch], device, beside, of_teacher)
        yield dict(zip(batch, found, strict=True))


def answered(
    prepared: Prepared,
    model: NamedModel,
    reader: Reader,
    numbers: Sequence[int],
    sampling: generation.Sampling,
    **settings: Any,
) -> dict[int, Answered | None]:
    """Answers to the prompts of some documents, by their numbers; none of documents without a prompt.

    Args:
        settings: of :func:`~distill_tune.evaluation.answering.answers`.
    """
    written, tokenizer = prepared.written(model), prepared.readings[model.reading].tokenizer
    prompts = {number: prompt for number in numbers if (prompt := written[number].prompt) is not None}
    found = answers(model, reader.model, tokenizer, list(prompts.values()), sampling, **settings)
    return dict(zip(prompts, found, strict=True))


def reached_in(
    tasks: Tasks, prepared: Prepared, model: NamedModel, reader: Reader, device: torch.device
) -> dict[str, Reached]:
    """What a model reaches in each task. All ranks call it, each asks the model its share, all are told.

    Raises:
        UserError: a task asks for what this model cannot do.
    """
    return reached(tasks, model, reader, prepared.readings[model.reading].tokenizer, device)


def measured(
    model: NamedModel,
    pace: Pace,
    tokens: Mapping[int, PerToken],
    texts: Mapping[int, Answered | None],
    tasks: Mapping[str, Reached] | None = None,
) -> Measured:
    """What all ranks have found of a model, each of its documents. All ranks call it.

    Args:
        tasks: what it reaches in tasks of lm-eval, which all ranks know.
    """
    shares = on_all_ranks((dict(tokens), dict(texts)))
    of_all = {number: of for share, _ in shares for number, of in share.items()}
    all_texts = {number: text for _, share in shares for number, text in share.items()}
    about = {
        "path": model.path,
        "kind": model.kind,
        "parameters": model.parameters,
        "file_bytes": model.file_bytes,
        **pace,
    }
    return Measured(
        about,
        model.reading,
        [of_all[number] for number in range(len(of_all))],
        [all_texts.get(number) for number in range(len(of_all))],
        tasks or {},
    )


def measure(prepared: Prepared, device: torch.device, with_speed: bool = True) -> dict[str, Measured]:
    """All models over all documents, without answers, in this process: what the recipe evaluate does in its own words.

    Args:
        with_speed: False times none.
    """
    timed, found, teacher = Timed(prepared, device, with_speed), dict[str, Measured](), None
    numbers = range(len(prepared.documents))
    for model in prepared.models:
        reader, pace = timed.load(model)
        tokens = dict[int, PerToken]()
        for batch in scored_batches(prepared, model, reader, teacher, numbers, device):
            tokens |= batch
        found[model.label] = measured(model, pace, tokens, {})
        if model.label == prepared.teacher:
            teacher = reader
        else:
            model.release()
            del reader
    return found
