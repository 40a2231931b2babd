"""A teacher of another tokenizer: asked about its own rows, which are aligned with the student's byte by byte."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.alignment.token_bytes import TokenBytes, token_bytes
from distill_tune.alignment.vocabulary_map import VocabularyMap
from distill_tune.config.components import build
from distill_tune.data.batch import Batch
from distill_tune.data.ends import exported_stops
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError
from distill_tune.losses import Aligned, Divergence, TokenWeight, unserved
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.vocabulary import Vocabulary, written_by
from distill_tune.teachers.several import SeveralTeachers
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder

KEY = "teacher_tokenizer"


class AlignedTeacher(Teacher):
    """Another teacher, whose word is on rows of its own tokens: as many as these have supervised positions.

    Args:
        teacher: gives whole distributions.
        tokenizer: its own.
        number: of the tokenizer, among those of the run's teachers that are not that of the rows.
    """

    shares_tokenizer = False

    def __init__(self, teacher: Teacher, tokenizer: OtherTokenizer, number: int) -> None:
        self._teacher, self._own, self._number = teacher, tokenizer, number
        self.other_tokenizers = [tokenizer]
        self.may_be_lost = teacher.may_be_lost
        self._take_over()

    def _take_over(self) -> None:
        """What is known of the teacher by now."""
        self.models, self.files, self.content = self._teacher.models, self._teacher.files, self._teacher.content

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> None:
        of_tokenizer = getattr(self._own.tokenizer, "folder", Path(os.devnull))  # which has nothing
        folder = next(iter(self._teacher.folders), of_tokenizer)
        vocab_size = self._teacher.check(student, dataclasses.replace(checkpoint, folder=folder), self._own.tokenizer)
        assert vocab_size is not None
        self._take_over()
        self._sizes = models.output_head(student).vocab_size, vocab_size
        self._ends = (
            frozenset(exported_stops(tokenizer, checkpoint.folder, self._sizes[0])),
            frozenset(exported_stops(self._own.tokenizer, folder, vocab_size)),
        )

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        if reason := unserved("aligned", divergence, token_weight, combination=combination):
            raise UserError(f"teacher_model: {reason}")

    def require_signals(self, datasets: Sequence[TokenisedRows], augmented: bool, number: int | None = None) -> None:
        read = [rows.read_by(self._number) for rows in datasets]
        used = functools.reduce(numpy.union1d, (rows.used_tokens for rows in read))
        self._teacher.require_rows(max(int(rows.lengths.max()) for rows in read), used)
        self._teacher.require_signals(read, False, number)
        self._take_over()

    def each(self, shape: Shape) -> list[tuple[Teacher, Shape]]:
        return self._teacher.each(shape.read_by(self._number))

    def own_bytes(self, is_sharded: bool) -> float | None:
        return self._teacher.own_bytes(is_sharded)

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        self._teacher.load(student, device, shard=shard, compile=compile)
        self._classes = self._map.token_classes(device)

    @functools.cached_property
    def _map(self) -> VocabularyMap:
        return VocabularyMap(self._own.rows_bytes, self._own.its_bytes, *self._sizes, *self._ends)

    def expect(self, batches: Iterator[Batch]) -> None:
        self._teacher.expect(batch.read_by(self._number) for batch in batches)

    def lost(self, batches: Sequence[Batch]) -> str | None:
        return self._teacher.lost([batch.read_by(self._number) for batch in batches])

    def __call__(self, batch: Batch) -> Aligned:
        read = batch.read_by(self._number)
        signal = self._teacher(read)
        positions = self._map.positions(read.alignment.numpy(), batch.learned.numpy())
        return Aligned(signal, read.targets[0, read.supervised_positions], positions, self._classes)

    def release(self) -> None:
        self._teacher.release()

    def state(self) -> dict[str, torch.Tensor]:
        return self._teacher.state()

    def restored(self) -> None:
        self._teacher.restored()


def with_own_tokenizers(
    teacher: Teacher, component: DictConfig | ListConfig | None, tokenizer: Any, student: Path
) -> Teacher:
    """The teacher, or each of several, as an :class:`AlignedTeacher` where its tokenizer is not that of the rows.

    Args:
        component: ``teacher_tokenizer``: of one teacher, or a list with one, or null, for each of several. Where it
            names none, the teacher's folder does.
        tokenizer: that writes the rows.
        student: its folder.

    Raises:
        UserError: a tokenizer that is needed is not known, or its tokens' bytes are not; a teacher that gives records
            of its word alone; not one tokenizer for each teacher.
    """
    each = teacher.teachers if isinstance(teacher, SeveralTeachers) else [teacher]
    if isinstance(component, ListConfig) and len(component) != len(each):
        raise UserError(
            f"{KEY}: is a list of {len(component)}, and there is {'one teacher' if len(each) == 1 else len(each)} in "
            "teacher_model: give one for each, null where the folder's own will do"
        )
    if isinstance(component, DictConfig) and len(each) > 1:
        raise UserError(f"{KEY}: teacher_model is a list of {len(each)}: give a list of as many, null where not needed")
    named = list(component) if isinstance(component, ListConfig) else [component] * len(each)
    rows = _Rows(tokenizer, written_by(tokenizer) or Vocabulary.of(student))
    found = dict[str, OtherTokenizer]()
    with_own = [_with_own(one, its, rows, found) for one, its in zip(each, named, strict=True)]
    if not found:
        return teacher
    return teacher.with_teachers(with_own) if isinstance(teacher, SeveralTeachers) else with_own[0]


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The tokenizer that writes the rows, and its vocabulary, where that is known."""

    tokenizer: Any
    vocabulary: Vocabulary | None

    @functools.cached_property
    def bytes_(self) -> TokenBytes:
        return token_bytes(self.tokenizer)


def _with_own(teacher: Teacher, component: DictConfig | None, rows: _Rows, found: dict[str, OtherTokenizer]) -> Teacher:
    """
    Args:
        found: the other tokenizers so far, by their configs; one more is put there.
    """
    is_named = component is not None
    its = written_by(built := build(KEY, component)) if is_named else teacher.vocabulary()
    if its is None and not is_named:
        return teacher
    if its is not None and rows.vocabulary is not None and not rows.vocabulary.is_another(its):
        if is_named:
            print(f"{KEY}: has the tokens of the rows, which the teacher reads as they are")
        return teacher
    where = teacher.folders[0] if teacher.folders else None
    if teacher.record_kind:
        raise UserError(
            f"teacher_model: gives records of kind {teacher.record_kind}, of tokens that are not those of the rows; "
            "take the teacher itself, or records of kind hidden"
        )
    if component is None:
        if where is None or where.suffix == ".gguf":
            raise UserError(
                f"{KEY}: teacher_model{f' {where}' if where else ''} has other tokens than the rows; name what writes "
                f"them: {KEY}._component_=distill_tune.data.hf_tokenizer {KEY}.path=FOLDER"
            )
        component = OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": str(where)})
        built = build(KEY, component)
    name = str(OmegaConf.to_container(component))
    if name not in found:
        found[name] = OtherTokenizer(built, component, token_bytes(built), rows.bytes_)
        of = f"that of {where}" if where else KEY
        print(f"teacher_model: its tokenizer, {of}, is not that of the rows; the answers are aligned byte by byte")
    return AlignedTeacher(teacher, found[name], list(found).index(name))
