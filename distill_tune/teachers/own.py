"""The student as its own teacher: an average of its weights, an earlier checkpoint, or its base model."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models, qat
from distill_tune.data.batch import Batch
from distill_tune.disk import CHECKSUMS
from distill_tune.errors import UserError
from distill_tune.losses import HiddenStates
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.loading import own_part, sharded
from distill_tune.models.parameters import named_parameters, reshard
from distill_tune.models.tensor_files import read_tensors, shapes_of
from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder
from torchtune.modules.peft import disable_adapter

_STUDENT = "student."  # what a checkpoint's names of the student's parameters begin with


class _CopyOfStudent(Teacher):
    """A second model of the student's shape, which begins with the student's weights."""

    _teacher: LiveTeacher

    @property
    def teacher(self) -> LiveTeacher:
        """Known after :meth:`check`."""
        return self._teacher

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        self._teacher = LiveTeacher(copy.deepcopy(student), checkpoint)
        self.models = self._teacher.models
        self.num_layers, self.width = self._teacher.num_layers, self._teacher.width
        self._student = student
        return self._teacher.vocab_size

    def own_bytes(self, is_sharded: bool) -> float | None:
        if is_sharded:
            return None
        both = zip(self._student.parameters(), self._teacher.model.parameters(), strict=False)  # projectors come last
        return sum(self._bytes_of(mine) for its, mine in both if its.requires_grad)

    def _bytes_of(self, copied: torch.Tensor) -> int:
        """Of what there is beside a parameter of the student's; what is frozen is shared."""
        return copied.numel() * copied.element_size()

    def keep_hidden_states(self, layers: Sequence[int]) -> None:
        self._teacher.keep_hidden_states(layers)

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        self._teacher.load(student, device, shard=shard, compile=compile)
        mine = dict(named_parameters(self._teacher.model))
        # (of the student, of the teacher) for all that trains; what is frozen is shared where it lies whole.
        self._pairs = {}
        for name, parameter in named_parameters(student):
            if models.is_projector(name):
                continue
            if parameter.requires_grad:
                self._pairs[name] = (parameter, mine[name])
                own_part(mine[name]).copy_(own_part(parameter.detach()))
            elif shard is None:
                mine[name].data = parameter.data

    def __call__(self, batch: Batch) -> HiddenStates:
        return self._teacher(batch)

    def release(self) -> None:
        self._teacher.release()
        reshard(self._teacher.model)  # the last layer, too, stays gathered, and would miss the change


class EMA(_CopyOfStudent):
    """An exponential moving average of the student's weights (mean teacher, Tarvainen and Valpola 2017, 1703.01780).

    After each step average = decay * average + (1 - decay) * student, in float32.

    Args:
        decay: 0 to 1, 1 excluded; averages over some 1 / (1 - decay) steps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"teacher_model.decay={decay}: must be from 0 to less than 1")
        self._decay = decay

    def _bytes_of(self, copied: torch.Tensor) -> int:
        return super()._bytes_of(copied) + (0 if copied.dtype == torch.float32 else 4 * copied.numel())

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        super().load(student, device, shard=shard, compile=compile)
        # In float32 what the teacher's own weights hold rounded; where they are float32, they themselves.
        self._average = {
            name: own_part(mine) if mine.dtype == torch.float32 else own_part(students.detach()).float().clone()
            for name, (students, mine) in self._pairs.items()
        }

    @torch.no_grad()
    def after_step(self) -> None:
        for name, (students, mine) in self._pairs.items():
            average = self._average[name]
            average.lerp_(own_part(students.detach()).float(), 1 - self._decay)
            if own_part(mine).data_ptr() != average.data_ptr():
                own_part(mine).copy_(average)

    def state(self) -> dict[str, torch.Tensor]:
        return {name: sharded(mine.detach(), self._average[name]) for name, (_, mine) in self._pairs.items()}

    @torch.no_grad()
    def restored(self) -> None:
        for name, (_, mine) in self._pairs.items():
            own_part(mine).copy_(self._average[name])


class EarlierCheckpoint(_CopyOfStudent):
    """The student as it was: what a checkpoint of a run of the same model holds.

    An exported ``model/`` folder needs none of this: name it as ``teacher_model: {_component_: from_hf, path: ...}``.

    Args:
        path: a folder ``checkpoints/step_N``.
    """

    def __init__(self, path: str) -> None:
        self._folder = Path(os.path.expanduser(path))

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        vocab_size = super().check(student, checkpoint, tokenizer)
        adapters = models.adapter_names(student)
        shapes = {name: list(p.shape) for name, p in named_parameters(student) if not adapters or name in adapters}
        try:
            saved = shapes_of(self._folder)
        except UserError as error:
            raise UserError(f"teacher_model.path={error}") from error
        trained = {key.removeprefix(_STUDENT): list(value.shape) for key, value in saved.items() if _STUDENT in key}
        found = {name: shape for name, shape in trained.items() if not models.is_projector(name)}
        if found != shapes:
            raise UserError(f"teacher_model.path={self._folder}: was trained with other parameters than `model`")
        self.files = [file for file in [self._folder / CHECKSUMS] if file.is_file()]
        return vocab_size

    @torch.no_grad()
    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        super().load(student, device, shard=shard, compile=compile)
        read_tensors(self._folder, {f"{_STUDENT}{name}": mine.detach() for name, (_, mine) in self._pairs.items()})


class BaseModel(Teacher):
    """With LoRA, the student with its adapters switched off: no second copy in memory."""

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        if not models.adapter_names(student):
            raise UserError(
                "teacher_model: distill_tune.teachers.BaseModel is the student without its adapters, and `model` has "
                "none; take a LoRA model, or distill_tune.teachers.EMA"
            )
        self.models = [student]
        self.num_layers, self.width = len(student.layers), student.tok_embeddings.weight.shape[1]
        self._layers: Sequence[int] = ()
        return models.output_head(student).vocab_size

    def keep_hidden_states(self, layers: Sequence[int]) -> None:
        self._layers = layers

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        self._student, self._head = student, models.output_head(student)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> HiddenStates:
        student, batch = self._student, batch.for_teacher
        was_training, kept = student.training, getattr(student, "kept_layers", ())
        student.eval()
        models.keep_hidden_states(student, self._layers)
        with qat.unquantized(student), disable_adapter(student):
            hidden, layers = models.hidden_states(student, batch.tokens, batch.attention())
        models.keep_hidden_states(student, kept)
        student.train(was_training)
        if isinstance(student, FSDPModule):
            self._head.gather()
        supervised = batch.supervised_positions
        return HiddenStates(hidden[0, supervised], self._head.base_projection_for_loss(), layers, supervised)
