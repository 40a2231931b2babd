"""What teacher_cache needs, as `distill-tune plan` tells it: the teacher once over every row, and the disk."""

import dataclasses
import functools
from typing import Any

import torch
from omegaconf import DictConfig

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import cache, data, training
from distill_tune.cli.planned_run import built_of
from distill_tune.data.shape import Shape
from distill_tune.evaluation import duration, estimate
from distill_tune.losses.head import CHUNK_BYTES
from distill_tune.training.gpus import Gpu

_LOGITS = CHUNK_BYTES["cuda"]  # what a chunk of them takes, at most


@dataclasses.dataclass(frozen=True)
class PlannedCache:
    """
    Attributes:
        shapes: of one process's micro-batches, as the teacher reads them.
        num_rows, num_positions: of all rows.
    """

    cfg: DictConfig
    built: Any
    encoding: cache.Encoding
    shapes: list[Shape]
    num_rows: int
    num_positions: int
    num_processes: int

    @classmethod
    def of(cls, cfg: DictConfig, num_processes: int) -> "PlannedCache":
        """
        Raises:
            UserError: as the recipe's, before it loads a weight.
        """
        built = built_of(cfg, with_cache=False)
        encoding = training.encoding_for(cfg.cache, built, cfg)
        training.require_serving(encoding, cfg)
        steps = training.plan_steps(cfg, built, cfg.get("seed") or 0, num_processes)
        plans = [steps.plan] + ([steps.plan_val] if steps.plan_val else [])
        plan = data.StepPlan.of_teacher(plans, training.tokens_of_a_batch(cfg, plans))
        every = range(plan.steps_per_epoch)
        shapes = [shape for step in every for shape in plan.shapes(0, step)]
        positions = sum(plan.num_supervised(0, step) for step in every)
        return cls(cfg, built, encoding, shapes, plan.num_rows, positions, num_processes)

    @functools.cached_property
    def memory(self) -> tuple[float, float]:
        """Bytes of the teacher's weights on each process, and of what it works with."""
        largest = max(self.shapes, key=lambda shape: sum(shape.lengths))
        memory = estimate.memory_of(self.cfg, self.built.student, self.built.teacher.itself, largest, self._shards)
        return memory.teacher, memory.teacher_activations + _LOGITS

    @functools.cached_property
    def work(self) -> duration.Work:
        """Of each process."""
        return duration.teacher_work_of(
            self.cfg, self.built.student, self.built.teacher.itself, self.shapes, self._shards
        )

    def seconds(self, gpu: Gpu) -> duration.Seconds | None:
        """None where the card cannot compute in the teacher's dtype."""
        dtype = training.find_dtype(self.cfg.get("teacher_dtype") or self.cfg.dtype, torch.device("cpu"))
        return duration.seconds_on(gpu, self.work, dtype, dtype)

    @property
    def _shards(self) -> int:
        return max(1, self.num_processes // int(self.cfg.get("data_parallel_replicate_dim") or 1))

    @property
    def remark(self) -> str | None:
        return training.remark_on_size(self.encoding, self.built.teacher.itself)

    @property
    def bytes_each(self) -> tuple[float, float]:
        """Of a position: about, and at most."""
        return self.encoding.bytes_of_position()
