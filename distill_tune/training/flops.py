"""What a step costs in matrix products, and how much of a device's peak it reached."""

import dataclasses
from typing import TYPE_CHECKING

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.shape import Shape
from distill_tune.models.hidden_states import is_projector
from distill_tune.models.output_head import output_head
from distill_tune.training.gpus import find_gpu

from torchtune.modules import TransformerDecoder

if TYPE_CHECKING:
    from distill_tune.teachers import Teacher


@dataclasses.dataclass(frozen=True)
class ModelFlops:
    """Of one model, for matrix products alone; a product of ``[m, k]`` and ``[k, n]`` is 2 m k n.

    Attributes:
        per_token: of the layers.
        per_supervised_token: of the output layer.
        per_attended_pair: of attention, for a token and one that it sees.
    """

    per_token: float
    per_supervised_token: float
    per_attended_pair: float

    @classmethod
    def of_model(cls, model: TransformerDecoder, trains: bool) -> "ModelFlops":
        """
        Args:
            trains: forward, gradient of the inputs, and gradient of what ``requires_grad``; else forward alone.
        """
        head = output_head(model).weight
        return cls(
            sum(_product(p, trains, p.requires_grad) for p in model.layers.parameters() if p.ndim == 2),
            _product(head, trains, head.requires_grad)
            + sum(_product(p, trains, p.requires_grad) for name, p in model.named_parameters() if is_projector(name)),
            # Scores and their use; twice that backward.
            4 * model.num_heads * model.head_dim * len(model.layers) * (3 if trains else 1),
        )

    def of(self, shape: Shape) -> float:
        """Of some rows as the model reads them."""
        return self.of_layers(shape) + self.per_supervised_token * shape.num_supervised

    def of_layers(self, shape: Shape) -> float:
        """The same without the output layer."""
        pairs = sum(length * (length + 1) / 2 for length in shape.lengths)
        return self.per_token * sum(shape.lengths) + self.per_attended_pair * pairs


class StepFlops:
    """Of those that take part in a step: the student trains, teachers run forward, each on what it reads.

    Args:
        student: with its final ``requires_grad``.
        teacher: checked.
    """

    def __init__(self, student: TransformerDecoder, teacher: "Teacher") -> None:
        self._student, self._teacher = ModelFlops.of_model(student, trains=True), teacher
        self._of_each = [_of_teacher(one) for one, _ in teacher.each(Shape((), ()))]

    def of(self, shape: Shape) -> float:
        """Of some rows, forward and backward."""
        return self.of_student(shape) + self.of_teacher(shape)

    def of_student(self, shape: Shape) -> float:
        return self._student.of(shape)

    def of_teacher(self, shape: Shape) -> float:
        """Of all teachers."""
        read = [its for _, its in self._teacher.each(shape)]
        return sum(one.of(its) for flops, its in zip(self._of_each, read, strict=True) for one in flops)


def _of_teacher(teacher: "Teacher") -> "list[ModelFlops]":
    from distill_tune.teachers import HuggingFace

    if isinstance(teacher, HuggingFace):
        width = teacher.width
        pairs = 4.0 * width * teacher.num_layers
        return [ModelFlops(2.0 * teacher.num_active_weights(), 2.0 * width * teacher.vocab_size, pairs)]
    return [ModelFlops.of_model(model, trains=False) for model in teacher.models]


def _product(weight: torch.Tensor, trains: bool, takes_gradient: bool) -> float:
    """FLOPs for each row that is multiplied by a weight."""
    return 2.0 * weight.numel() * (1 + (1 + takes_gradient if trains else 0))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The device's data-sheet rate in bf16; None where it is not known."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    gpu = find_gpu(torch.cuda.get_device_name(device))
    return gpu.bf16 if gpu else None


class Utilisation:
    """Model FLOP utilisation (PaLM, arXiv 2204.02311, appendix B): a step's products over what the device could do.

    What activation checkpointing computes a second time is not counted.

    Args:
        student: with its final ``requires_grad``.
        teacher: checked.
        num_devices: that share the steps.
    """

    def __init__(
        self,
        student: TransformerDecoder,
        teacher: "Teacher",
        device: torch.device,
        dtype: torch.dtype,
        num_devices: int = 1,
    ) -> None:
        peak = peak_flops(device, dtype)
        self._peak = peak * num_devices if peak else 0.0
        self._flops = StepFlops(student, teacher) if peak else None

    def of_step(self, shape: Shape, seconds: float) -> dict[str, float]:
        """``{"model_flops_utilization": share}``, or nothing where the device's peak is not known.

        Args:
            shape: of the step's rows, on all devices.
        """
        return {"model_flops_utilization": self._flops.of(shape) / seconds / self._peak} if self._flops else {}
