"""How long a step takes on a card: its products, what has to travel meanwhile, and what the host does for both."""

import operator
from collections.abc import Sequence
from typing import NamedTuple

import torch
from omegaconf import DictConfig

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.shape import Shape
from distill_tune.teachers import Teacher
from distill_tune.training.flops import ModelFlops, StepFlops
from distill_tune.training.gpus import Gpu

from torchtune.modules import TransformerDecoder

_OF_RATE = 0.4  # of a data sheet's products, which a well-fed card reaches
_OF_LINK = 0.7  # of a data sheet's link
# Seconds in which a host starts the kernels of a layer's pass, however few tokens there are: measured beside an H200
# (benchmarks/RESULTS.md), where it decides over steps of short rows. Backward is as two passes.
_OF_PASS = 2e-3


class Work(NamedTuple):
    """Of some steps, on each process.

    Attributes:
        student: FLOPs, with what checkpointing computes a second time.
        teacher: FLOPs.
        between_cards: bytes that each receives: weights as they are gathered, and the sums of gradients.
        from_host: bytes of weights that are streamed.
        passes: through a layer of either model.
    """

    student: float
    teacher: float
    between_cards: float
    from_host: float
    passes: float

    def times(self, count: float) -> "Work":
        return Work(*(part * count for part in self))

    def plus(self, other: "Work") -> "Work":
        return Work(*map(operator.add, self, other))


class Seconds(NamedTuple):
    """Of some work on a card; what travels, and what the host does, is done while it computes."""

    products: float
    between_cards: float
    from_host: float
    host: float

    @property
    def total(self) -> float:
        return max(self)


def work_of(
    cfg: DictConfig, student: TransformerDecoder, teacher: Teacher, shapes: Sequence[Shape], steps: int, shards: int
) -> Work:
    """
    Args:
        shapes: of one process's micro-batches in some steps.
        steps: how many these are.
        shards: processes that share the weights.
    """
    flops, again = StepFlops(student, teacher), ModelFlops.of_model(student, trains=False)
    recomputed = sum(again.of_layers(shape) for shape in shapes) if cfg.get("enable_activation_checkpointing") else 0.0
    layers, outside = _gathered(student)
    gathers = (1 if cfg.get("fsdp_reshard_after_forward") is False else 2) * layers + outside
    gradients = 4.0 * sum(p.numel() for p in student.parameters() if p.requires_grad)
    replicas = int(cfg.get("data_parallel_replicate_dim") or 1)
    summed = 2 * (replicas - 1) / replicas * gradients / shards  # a ring that sums, then hands round
    between, from_host = _from_shards(cfg, len(shapes) * gathers + steps * gradients, shards)
    passes = len(shapes) * len(student.layers) * (4 if cfg.get("enable_activation_checkpointing") else 3)
    of_student = sum(map(flops.of_student, shapes)) + recomputed
    own = Work(of_student, 0.0, between + steps * summed, from_host, passes)
    return own.plus(teacher_work_of(cfg, student, teacher, shapes, shards))


def teacher_work_of(
    cfg: DictConfig, student: TransformerDecoder, teacher: Teacher, shapes: Sequence[Shape], shards: int
) -> Work:
    """The teacher's part of :func:`work_of`."""
    gathered = streamed = 0.0
    for model in teacher.models:
        layers, outside = _gathered(model)
        if cfg.get("teacher_offload"):
            streamed += layers
        elif not cfg.get("teacher_quantizer") and model is not student:
            gathered += layers + outside
    between, from_host = _from_shards(cfg, len(shapes) * gathered, shards)
    passes = len(shapes) * sum(len(model.layers) for model in teacher.models)
    flops = sum(map(StepFlops(student, teacher).of_teacher, shapes))
    return Work(0.0, flops, between, len(shapes) * streamed + from_host, passes)


def seconds_on(gpu: Gpu, work: Work, student: torch.dtype, teacher: torch.dtype) -> Seconds | None:
    """
    Args:
        student, teacher: in which they compute.

    Returns:
        None where the card cannot compute in one of these.
    """
    of_student, of_teacher = gpu.rate(student), gpu.rate(teacher)
    if of_student is None or of_teacher is None:
        return None
    return Seconds(
        (work.student / of_student + work.teacher / of_teacher) / _OF_RATE,
        work.between_cards / gpu.link / _OF_LINK,
        work.from_host / gpu.host / _OF_LINK,
        work.passes * _OF_PASS,
    )


def _from_shards(cfg: DictConfig, num_bytes: float, shards: int) -> tuple[float, float]:
    """What of weights and gradients that lie in shards reaches a process from the others, and from the host."""
    if shards == 1:
        return 0.0, 0.0
    return (shards - 1) / shards * num_bytes, num_bytes / shards if cfg.get("fsdp_cpu_offload") else 0.0


def _gathered(model: TransformerDecoder) -> tuple[float, float]:
    """Bytes of the layers and of what is outside, in the dtype in which they are gathered."""
    most = models.computed_in(model).itemsize

    def size(parameter: torch.nn.Parameter) -> float:
        return min(models.num_bytes(parameter), parameter.numel() * most)

    layers = sum(map(size, model.layers.parameters()))
    return layers, sum(map(size, model.parameters())) - layers
