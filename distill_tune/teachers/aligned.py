"""A teacher of another tokenizer: asked about its own rows, which are aligned with the student's byte by byte."""

import contextlib
import copy
import dataclasses
import functools
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.alignment.token_bytes import TokenBytes, token_bytes
from distill_tune.alignment.vocabulary_map import VocabularyMap
from distill_tune.config.components import instantiate
from distill_tune.counts import counted
from distill_tune.data.batch import Batch
from distill_tune.data.ends import exported_stops
from distill_tune.data.other_tokenizer import OtherTokenizer, told_of_teacher
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError
from distill_tune.losses import Aligned, Divergence, TokenLikelihoods, TokenWeight, unserved
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.published import is_published
from distill_tune.models.tokenizer_files import open_tokenizer
from distill_tune.models.vocabulary import ANOTHER, Vocabulary, written_by
from distill_tune.teachers.several import SeveralTeachers
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder

KEY = "teacher_tokenizer"
_MOST_MASKED = 0.5  # of the answers' bytes
_PADDING = 0.05  # by so much vocabularies of one tokenizer may differ


class KeysOfModel(NamedTuple):
    """What messages call a model and its tokenizer, and how the latter is named."""

    model: str = "teacher_model"
    tokenizer: str = KEY
    example: str = f"+{KEY}._component_=distill_tune.data.hf_tokenizer +{KEY}.path=FOLDER"


_OF_TEACHER = KeysOfModel()


class AlignedTeacher(Teacher):
    """Another teacher, whose word is on rows of its own tokens: as many as these have supervised positions.

    Args:
        teacher: gives whole distributions, or records of kind likelihood.
        tokenizer: its own.
        number: of the tokenizer, among those of the run's teachers that are not that of the rows.
    """

    shares_tokenizer = False
    # What is known of the teacher by now.
    models: Any = property(operator.attrgetter("itself.models"))
    files: Any = property(operator.attrgetter("itself.files"))
    content: Any = property(operator.attrgetter("itself.content"))
    may_be_lost: Any = property(operator.attrgetter("itself.may_be_lost"))
    answers_new_rows: Any = property(operator.attrgetter("itself.answers_new_rows"))

    def __init__(self, teacher: Teacher, tokenizer: OtherTokenizer, number: int) -> None:
        self._teacher, self._own, self._number = teacher, tokenizer, number
        self.other_tokenizers = [tokenizer]

    @property
    def itself(self) -> Teacher:
        return self._teacher

    def asking(self, teacher: Teacher) -> "AlignedTeacher":
        """The same, checked as it is, with another in the place of the teacher itself."""
        same = copy.copy(self)
        same._teacher = teacher
        return same

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> None:
        of_tokenizer = getattr(self._own.tokenizer, "folder", Path(os.devnull))  # which has nothing
        folder = next(iter(self._teacher.folders), of_tokenizer)
        is_other = self._own.tokenizer is not tokenizer
        own = dataclasses.replace(checkpoint, folder=folder) if is_other else checkpoint
        vocab_size = self._teacher.check(student, own, self._own.tokenizer)
        assert vocab_size is not None
        self._sizes = models.output_head(student).vocab_size, vocab_size
        of_student = exported_stops(tokenizer, checkpoint.folder, self._sizes[0])
        with told_of_teacher():
            its = exported_stops(self._own.tokenizer, own.folder, vocab_size)
        self._ends = frozenset(of_student), frozenset(its)

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        if reason := unserved("aligned", divergence, token_weight, combination=combination):
            raise UserError(f"teacher_model: {reason}")
        self._teacher.require_loss(divergence, token_weight, temperature, combination)

    def require_signals(self, datasets: Sequence[TokenisedRows], augmented: bool, number: int | None = None) -> None:
        read = [rows.read_by(self._number) for rows in datasets]
        for rows in read:
            _require_found(rows, self._own.its_bytes)
        used = functools.reduce(numpy.union1d, (rows.used_tokens for rows in read))
        try:
            self._teacher.require_rows(max(int(rows.lengths.max()) for rows in read), used)
        except UserError as error:  # of rows that have no other bound, and tokens of its own
            told = str(error).replace("dataset: its", f"{KEY}: its").replace("tokenizer.max_", "teacher_max_")
            raise UserError(told.replace("take the model's own tokenizer", "name the model's own")) from error
        self._teacher.require_signals(read, False, number)

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


def _require_found(rows: TokenisedRows, its_bytes: TokenBytes) -> None:
    """
    Args:
        rows: as the teacher reads them.

    Raises:
        UserError: most of the answers are not found in what the teacher's tokenizer writes. What one side's template
            has beside them, as an empty thought, does not count.
    """
    found = rows.alignment
    if found is None:
        return
    least = min(found.num_bytes, int(its_bytes.lengths[rows.learned].sum()))
    missing = least - (found.num_bytes - found.num_masked_bytes)
    if missing > _MOST_MASKED * least:
        raise UserError(
            f"{KEY}: {missing / least:.0%} of the answers' bytes are not found in what it writes of the same rows: it, "
            "or its chat template, writes other texts, and the teacher's word on those teaches nothing; name the "
            "teacher's own"
        )


def with_own_tokenizers(
    teacher: Teacher,
    component: DictConfig | ListConfig | None,
    tokenizer: Any,
    tokenizer_config: DictConfig,
    vocab_size: int,
    folder: Path | None,
) -> Teacher:
    """The teacher, or each of several, as an :class:`AlignedTeacher` where its tokenizer is not that of the rows.

    Where one of several has its own, and each row follows one of them, or a teacher has fewer logits than the student,
    the alignment of those that read the rows' tokens is that of each token with itself.

    Args:
        component: ``teacher_tokenizer``: of one teacher, or a list with one, or null, for each of several. Where it
            names none, the teacher's folder does.
        tokenizer, tokenizer_config: that writes the rows, and what it was made from.
        vocab_size: of the student.
        folder: whose tokenizer that is, where ``tokenizer`` is not transformers'.

    Raises:
        UserError: a tokenizer that is needed is not known, or its tokens' bytes are not; a teacher that gives records
            of its word alone; not one tokenizer for each teacher.
    """
    each = teacher.teachers if isinstance(teacher, SeveralTeachers) else [teacher]
    vocabulary = written_by(tokenizer) or (Vocabulary.of(folder) if folder else None)
    rows = _Rows(tokenizer, tokenizer_config, vocabulary, vocab_size)
    found = _own_of_each(each, component, rows, "the answers are aligned byte by byte")
    if not any(found):
        return teacher
    is_added_up = isinstance(teacher, SeveralTeachers) and teacher.combination == "sum"
    made, with_own = dict[str, OtherTokenizer](), list[Teacher]()
    for one, its in zip(each, found, strict=True):
        is_plain = is_added_up and getattr(one, "vocab_size", vocab_size) >= vocab_size
        if its is None and (one.record_kind or is_plain):
            with_own.append(one)
            continue
        its = its or _Own(tokenizer, tokenizer_config)
        name = str(OmegaConf.to_container(its.config))
        if name not in made:
            made[name] = OtherTokenizer(its.tokenizer, its.config, token_bytes(its.tokenizer), rows.bytes_)
        with_own.append(AlignedTeacher(one, made[name], list(made).index(name)))
    return teacher.with_teachers(with_own) if isinstance(teacher, SeveralTeachers) else with_own[0]


def own_tokenizers(
    each: Sequence[Teacher],
    component: DictConfig | ListConfig | None,
    tokenizer: Any,
    keys: KeysOfModel = _OF_TEACHER,
    then: str = "it is asked in its own tokens",
) -> list[Any]:
    """The tokenizer of each teacher that is asked by itself, where it is not that of the rows; None where it is.

    Args:
        component, tokenizer: as of :func:`with_own_tokenizers`.
        keys: for messages.
        then: what is told where a tokenizer is not that of the rows.

    Raises:
        UserError: as there.
    """
    rows = _Rows(tokenizer, OmegaConf.create(), written_by(tokenizer), getattr(tokenizer, "vocab_size", None))
    return [own and own.tokenizer for own in _own_of_each(each, component, rows, then, keys)]


def _own_of_each(
    each: Sequence[Teacher],
    component: DictConfig | ListConfig | None,
    rows: "_Rows",
    then: str,
    keys: KeysOfModel = _OF_TEACHER,
) -> "list[_Own | None]":
    if isinstance(component, ListConfig) and len(component) != len(each):
        raise UserError(
            f"{KEY}: is a list of {len(component)}, and teacher_model names {counted(len(each), 'teacher')}: give one "
            "for each, null where the folder's own will do"
        )
    if isinstance(component, DictConfig) and len(each) > 1:
        raise UserError(f"{KEY}: teacher_model is a list of {len(each)}: give a list of as many, null where not needed")
    named = list(component) if isinstance(component, ListConfig) else [component] * len(each)
    return [_own_tokenizer(one, its, rows, then, keys) for one, its in zip(each, named, strict=True)]


class _Own(NamedTuple):
    """A teacher's own tokenizer, and what it was made from."""

    tokenizer: Any
    config: DictConfig


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The tokenizer that writes the rows, what it was made from, and its vocabulary, where that is known.

    Attributes:
        size: tokens that are known to whom the rows are for; None where that is not known.
    """

    tokenizer: Any
    config: DictConfig
    vocabulary: Vocabulary | None
    size: int | None

    @functools.cached_property
    def bytes_(self) -> TokenBytes:
        return token_bytes(self.tokenizer)

    def are_written_by(self, tokenizer: Any) -> bool:
        """Whether a tokenizer's tokens are those of the rows."""
        its = written_by(tokenizer)
        if its is not None and self.vocabulary is not None:
            return not self.vocabulary.is_another(its)
        pairs = zip(self.bytes_.of, token_bytes(tokenizer).of, strict=False)
        return sum(mine != its for mine, its in pairs) <= ANOTHER * len(self.bytes_.of)


def _is_another(teacher: Teacher, where: Path | None, rows: _Rows) -> bool | None:
    """Whether a teacher's tokenizer is not that of the rows, as far as its files tell; None where they do not."""
    its = teacher.vocabulary()
    if its is None:
        return None
    if rows.vocabulary is not None:
        return rows.vocabulary.is_another(its)
    opened = None if where is None else open_tokenizer(where)
    with contextlib.suppress(UserError):  # of tokens whose bytes cannot be told
        return None if opened is None else not rows.are_written_by(opened)
    return None


def _own_tokenizer(
    teacher: Teacher, component: DictConfig | None, rows: _Rows, then: str, keys: KeysOfModel
) -> _Own | None:
    """None where it has the tokens of the rows, as far as its files tell."""
    key, of_tokenizer, example = keys
    where = teacher.folders[0] if teacher.folders else None
    if component is not None:
        with told_of_teacher():
            built = instantiate(component)
        if rows.are_written_by(built):
            print(f"{of_tokenizer}: has the tokens of the rows, which are read as they are")
            return None
    else:
        is_another = _is_another(teacher, where, rows)
        if is_another is None and where is not None and is_published(where):
            print(
                f"{key}: {where.name} is not here, so its tokenizer was not compared with that of the rows, "
                "and is taken for the same"
            )
        elif is_another is None and where is not None:
            its_size = getattr(teacher, "vocab_size", None)
            if its_size and rows.size and abs(its_size - rows.size) > _PADDING * max(its_size, rows.size):
                raise UserError(
                    f"{key}: {where} has no tokenizer that can be compared with that of the rows, and knows "
                    f"{its_size} tokens where the student knows {rows.size}: they are others. Complete the folder, or "
                    f"name what writes them: {example}"
                )
            print(
                f"{key}: no tokenizer of {where} can be compared with that of the rows, so it is taken for the "
                f"same; if it is not, name its own as {of_tokenizer}"
            )
        if not is_another:
            return None
    if teacher.record_kind not in ("", TokenLikelihoods.kind):
        raise UserError(
            f"{key}: gives records of kind {teacher.record_kind}, of tokens that are not those of the rows; "
            "take the teacher itself, or records of kind hidden, or likelihood for ChunkLikelihood"
        )
    if component is None:
        if where is None:
            raise UserError(f"{of_tokenizer}: {key} has other tokens than the rows; name what writes them: {example}")
        component = OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": str(where)})
        with told_of_teacher():
            built = instantiate(component)
    told = f"that of {where}" if where else of_tokenizer
    print(f"{key}: its tokenizer, {told}, is not that of the rows; {then}")
    return _Own(built, component)
