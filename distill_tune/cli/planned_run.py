"""A run as `distill-tune plan` sees it: models without weights, and rows as shapes."""

import contextlib
import dataclasses
import functools
import io
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models, rollouts, training
from distill_tune.data.shape import Shape
from distill_tune.evaluation import duration, estimate
from distill_tune.teachers import Teacher
from distill_tune.training.gpus import Gpu
from distill_tune.training.write_through import WriteThrough

from torchtune.modules import TransformerDecoder

_STEPS = 100  # over which the work is averaged


class PlannedData(NamedTuple):
    """
    Attributes:
        sample: one process's micro-batches in the first steps.
        num_sampled: how many steps these are.
        largest: some of any process's in any step, of which one takes the most memory.
        longest: tokens of the longest row, as student or teacher reads it.
    """

    sample: list[Shape]
    num_sampled: int
    largest: list[Shape]
    longest: int
    each_epoch: int
    total: int

    @classmethod
    def of(cls, steps: Any, rows: rollouts.RowsOfData | rollouts.RowsOnPolicy) -> "PlannedData":
        num_sampled = min(_STEPS, steps.plan.steps_per_epoch)
        sample = [shape for step in range(num_sampled) for shape in rows.shapes(step)]
        return cls(sample, num_sampled, _largest(rows), rows.longest, steps.steps_per_epoch, steps.total_steps)

    def halved(self) -> "PlannedData":
        """With micro-batches of half as many rows, and twice as many of them."""
        sample = [half for shape in self.sample for half in shape.halves()]
        return self._replace(sample=sample, largest=[shape.halves()[0] for shape in self.largest])


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """What the estimates are made from.

    Attributes:
        is_distributed: whether its recipe is for several processes, and shards the weights though there be one.
    """

    cfg: DictConfig
    student: TransformerDecoder
    teacher: Teacher
    data: PlannedData
    rows: rollouts.RowsOfData | rollouts.RowsOnPolicy
    num_processes: int
    is_distributed: bool

    @classmethod
    def of(cls, cfg: DictConfig, num_processes: int, is_distributed: bool) -> "PlannedRun":
        """
        Raises:
            UserError: as a run's, before it loads a weight.
        """
        training.use_day(cfg.get("date"), teacher_cache=cfg.get("teacher_cache"))
        built = built_of(cfg)
        seed = cfg.get("seed") or 0
        steps = training.plan_steps(cfg, built, seed, num_processes)
        for line in training.describe_others(built.tokenizer, built.teacher.other_tokenizers, steps.plan.datasets):
            print(line)
        rows = rollouts.build_rows(cfg, built, steps, seed)
        data = PlannedData.of(steps, rows)
        return cls(cfg, built.student, built.teacher, data, rows, num_processes, is_distributed)

    def with_config(self, cfg: DictConfig, data: PlannedData) -> "PlannedRun":
        """The same with another config, whose rows are the same.

        Raises:
            UserError: its models cannot be built.
        """
        with contextlib.redirect_stdout(io.StringIO()):  # what is told of the models has been told
            built = built_of(cfg)
        through, prepared = built.teacher.itself, self.teacher.itself
        if isinstance(through, WriteThrough) and isinstance(prepared, WriteThrough):
            through.asked_as(prepared)
        return dataclasses.replace(self, cfg=cfg, student=built.student, teacher=built.teacher, data=data)

    @property
    def shards(self) -> int:
        return max(1, self.num_processes // int(self.cfg.get("data_parallel_replicate_dim") or 1))

    @functools.cached_property
    def memory(self) -> estimate.Memory:
        shards = self.shards if self.is_distributed else None
        found = [estimate.memory_of(self.cfg, self.student, self.teacher, shape, shards) for shape in self.data.largest]
        largest = max(found, key=lambda memory: memory.peak)
        rows = round(sum(len(shape.lengths) for shape in self.data.sample) / self.data.num_sampled)
        cache = self.rows.cache_bytes(rows, models.computed_in(self.student))
        return dataclasses.replace(largest, key_value_cache=cache)

    @functools.cached_property
    def work(self) -> duration.Work:
        """Of all steps, on each process."""
        sampled = self.data.num_sampled
        work = duration.work_of(self.cfg, self.student, self.teacher, self.data.sample, sampled, self.shards)
        if isinstance(through := self.teacher.itself, WriteThrough):  # which asks once about rows that come again
            read = (
                self.num_processes * sum(len(shape.lengths) for shape in self.data.sample) * self.data.total / sampled
            )
            unasked = 1 - min(1.0, through.num_asked / read)
            of_teacher = duration.teacher_work_of(self.cfg, self.student, self.teacher, self.data.sample, self.shards)
            work = work.plus(of_teacher.times(-unasked))
        return work.times(self.data.total / sampled)

    def seconds(self, gpu: Gpu) -> duration.Seconds | None:
        """Of the whole run; None where the card cannot compute in its dtype."""
        student, teacher = models.computed_in(self.student), self.cfg.get("teacher_dtype") or self.cfg.dtype
        return duration.seconds_on(gpu, self.work, student, training.find_dtype(teacher, torch.device("cpu")))


def built_of(cfg: DictConfig, with_cache: bool = True) -> Any:
    """Models without weights, as :func:`~distill_tune.training.preparation.build_models` makes them."""
    device = torch.device("cpu")
    built = training.build_models(cfg, device, needs_weights=False, with_cache=with_cache)
    dtype = training.find_dtype(cfg.dtype, device)
    models.freeze_all_but_adapters(built.student, training.dtype_to_train_in(cfg.optimizer, dtype, built.student))
    models.compute_in(built.student, dtype)
    return built


def _largest(rows: rollouts.RowsOfData | rollouts.RowsOnPolicy) -> list[Shape]:
    """Those of the largest micro-batches with the most tokens for the student, for the teacher, and to be learned."""
    shapes = rows.largest_shapes
    measures = (lambda x: sum(x.lengths), lambda x: x.num_teacher_tokens, lambda x: x.num_supervised)
    return list(dict.fromkeys(max(shapes, key=measure) for measure in measures))
