"""What comes before the first weight of an evaluation is read: which models, and the documents as each reads them."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import DictConfig

from distill_tune import data, generation, models
from distill_tune.config.components import build
from distill_tune.config.files import is_model_folder, local_path, model_at
from distill_tune.config.keys import OWN_MODELS
from distill_tune.data.prompts import PLAIN_READING
from distill_tune.errors import CollectedFaults, UserError
from distill_tune.evaluation.documents import Documents, Reading, Written, read_documents
from distill_tune.evaluation.named_models import AFTER, BEFORE, TEACHER, NamedModel, open_named, open_teacher
from distill_tune.evaluation.scoring import Reader
from distill_tune.evaluation.windows import require_stride
from distill_tune.models.vocabulary import written_by
from distill_tune.training.device import find_dtype
from distill_tune.training.output_check import require_writable
from distill_tune.training.preparation import reading_of
from distill_tune.training.run_folder import RunFolder

_FOLDER = "evaluation"  # of a run's
_DEFAULT_TOKENS = 128  # of an answer
_RUN_FIRST = "has no model yet, and is left out; distill-tune run kd_single_device with this config makes it"
_OF_CHECKPOINT = (
    "has no model yet, and is left out; with resume=auto its run goes on, or measure what distill-tune export makes "
    "of its newest checkpoint"
)

Named = tuple[str, Any, str]  # label, path, and the key that names it, where that is not models.LABEL


@dataclasses.dataclass(frozen=True)
class Prepared:
    """
    Attributes:
        models: in the order in which they are measured: the one that others are held against comes first.
        readings: by which models read the documents; the first is that of the rows' tokenizer.
        documents: in all of them.
        teacher, base: labels of the one that others are held against, and of the student before training, if any.
        context, stride: of windows; context None for each model's own.
    """

    models: Sequence[NamedModel]
    readings: Sequence[Reading]
    documents: Documents
    teacher: str | None = None
    base: str | None = None
    context: int | None = None
    stride: int | None = None

    def written(self, model: NamedModel) -> Sequence[Written]:
        """The documents as a model reads them."""
        return self.documents.written[model.reading]

    def reader(self, model: NamedModel, loaded: Any) -> Reader:
        limits = [limit for limit in (self.context, model.context) if limit is not None]
        return Reader(model.label, loaded, min(limits, default=None), self.stride)

    def is_compared(self, model: NamedModel) -> bool:
        """Whether there is a teacher of the same tokens."""
        first = self.models[0]
        is_another = self.teacher is not None and model is not first
        return is_another and model.tokenizer is None and first.tokenizer is None


def prepare(
    named: Sequence[NamedModel],
    dataset: Any,
    tokenizer: Any,
    *,
    teacher: str | None = None,
    base: str | None = None,
    prompts: data.Reading = PLAIN_READING,
    key: str = "dataset_test",
    category_column: str | None = None,
    context: int | None = None,
    stride: int | None = None,
    most: int | None = None,
) -> Prepared:
    """Read the documents for all models, and have what is wrong between them and the models told.

    Args:
        named: the one that ``teacher`` is the label of comes first.
        dataset: a component, or a list of them.
        tokenizer: of all models that have none of their own.
        prompts: what is written around user turns; that of the student for all models but the teacher.

    Raises:
        UserError: two models have one label; documents that cannot be read, or have tokens that a model lacks.
    """
    labels = [model.label for model in named]
    if again := next((label for label in labels if labels.count(label) > 1), None):
        raise UserError(f"models.{again}: two models have this label; give one another")
    readings = [Reading(tokenizer, prompts.student)]
    for model in named:
        reading = Reading(model.tokenizer or tokenizer, prompts.teacher if model.label == teacher else prompts.student)
        if reading not in readings:
            readings.append(reading)
        model.reading = readings.index(reading)
    documents = read_documents(dataset, readings, key=key, category_column=category_column, most=most)
    prepared = Prepared(named, readings, documents, teacher, base, context, stride)
    own = [model for model in named if model.tokenizer is None and model.folder is not None]
    base_folder = own[0].folder if own else None
    writer = getattr(tokenizer, "folder", None) if written_by(tokenizer) else base_folder
    for model in named:
        used = numpy.unique(numpy.concatenate([written.tokens for written in prepared.written(model)]))
        model.require_tokens(writer if model.tokenizer is None else None, used)
        if (limit := prepared.reader(model, None).context) is not None:
            longest = max(len(written.tokens) for written in prepared.written(model))
            if longest > limit:
                require_stride(limit, stride)
    return prepared


def prepare_evaluation(cfg: DictConfig, device: torch.device, tokenizer: Any) -> Prepared:
    """A config's teacher, its student before and after training, and what ``models`` names besides.

    What is not there yet of a run is left out, in a line.

    Args:
        device: on which models will be, which decides on their dtypes.

    Raises:
        UserError: all that can be wrong; no documents.
    """
    require_writable("output_dir", str(evaluation_folder(cfg)))
    dataset = cfg.get("dataset_test") if cfg.get("dataset_test") is not None else cfg.get("dataset_val")
    if dataset is None:
        raise UserError(
            "dataset_test: missing; name rows that no model was trained on, as "
            "'+dataset_test={_component_: distill_tune.data.instruct, source: unseen.json}'"
        )
    named, teacher, base = open_models(cfg, device, tokenizer)
    return prepare(
        named,
        dataset,
        tokenizer,
        teacher=teacher,
        base=base,
        prompts=reading_of(cfg, ()),
        key="dataset_val" if cfg.get("dataset_test") is None else "dataset_test",
        category_column=cfg.get("category_column", "category"),
        context=cfg.get("window") or getattr(tokenizer, "max_seq_len", None),
        stride=cfg.get("stride"),
    )


def evaluation_folder(cfg: DictConfig) -> Path:
    """Where a config's results are written."""
    return local_path(cfg.get("evaluation_folder") or str(RunFolder.of(cfg.output_dir).path / _FOLDER))


def open_models(
    cfg: DictConfig, device: torch.device, tokenizer: Any, others: Iterable[Named] | None = None
) -> tuple[list[NamedModel], str | None, str | None]:
    """The models of a config, and the labels of teacher and base; see :func:`prepare_evaluation`.

    Args:
        others: besides the teacher and the student before training; default the student after it, and what ``models``
            names.

    Raises:
        UserError: what is wrong with each, together; there is none.
    """
    named: Mapping[str, Any] = cfg.get("models") or {}
    dtype = find_dtype(cfg.dtype, device)
    faults, found = CollectedFaults("models"), list[NamedModel]()
    student: tuple[Any, models.Checkpoint] | None = None
    if cfg.get("model") is not None:
        with faults:
            checkpoint = models.open_checkpoint("model", cfg.model, cfg.get("checkpointer"))
            student = models.checked_on_meta("model", cfg.model, checkpoint, dtype), checkpoint
    if TEACHER in named:
        with faults:
            found += [open_named(TEACHER, one, tokenizer, dtype) for one in _unless_null(named[TEACHER])]
    elif cfg.get("teacher_model") is not None:
        with faults:
            of_teacher = find_dtype(cfg.get("teacher_dtype") or cfg.dtype, device)
            found.append(open_teacher(cfg, tokenizer, of_teacher, student))
    if BEFORE in named:
        students: list[Named] = [(BEFORE, one, "") for one in _unless_null(named[BEFORE])]
    else:
        students = [(BEFORE, _folder_of(student[1]), "model")] if student is not None else []
    for label, one, key in (*students, *(_others(cfg, named) if others is None else others)):
        with faults:
            found.append(open_named(label, one, tokenizer, dtype, key))
    faults.tell()
    if not found:
        raise UserError("models: missing; name what is measured, as models={distilled: outputs/mine}")
    labels = {model.label for model in found}
    return found, TEACHER if TEACHER in labels else None, BEFORE if BEFORE in labels else None


def _others(cfg: DictConfig, named: Mapping[str, Any]) -> Iterator[Named]:
    """The student after training, and what else is named."""
    run = RunFolder.of(cfg.output_dir).path
    if AFTER in named:
        yield from ((AFTER, one, "") for one in _unless_null(named[AFTER]))
    elif cfg.get("model") is not None:
        if is_model_folder(model_at(run)):
            yield AFTER, str(run), "output_dir"
        else:
            print(f"{AFTER}: output_dir={run} {_OF_CHECKPOINT if (run / 'checkpoints').is_dir() else _RUN_FIRST}")
    for label, one in named.items():
        if label not in OWN_MODELS:
            yield str(label), one, ""


def _unless_null(named: Any) -> list[Any]:
    """What takes the place of one of the config's own models: null leaves it out."""
    return [] if named is None else [named]


def _folder_of(checkpoint: models.Checkpoint) -> str:
    return str(checkpoint.adapter.folder if checkpoint.adapter else checkpoint.folder)


def sampling_of(cfg: DictConfig) -> generation.Sampling:
    """How models answer: by default with the likeliest tokens, some hundred at most."""
    return build("sampling", cfg.get("sampling"), generation.Sampling(_DEFAULT_TOKENS, temperature=0))
