"""What a step costs in matrix products, and how much of a device's peak it reached."""

import dataclasses
from collections.abc import Iterable, Sequence

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.models.output_head import output_head
from distill_tune.training.gpus import find_gpu

from torchtune.modules import TransformerDecoder


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
    def of(cls, model: TransformerDecoder, trains: bool) -> "ModelFlops":
        """
        Args:
            trains: forward, gradient of the inputs, and gradient of what ``requires_grad``; else forward alone.
        """
        head = output_head(model).weight
        return cls(
            sum(_product(p, trains, p.requires_grad) for p in model.layers.parameters() if p.ndim == 2),
            _product(head, trains, head.requires_grad),
            # Scores and their use; twice that backward.
            4 * model.num_heads * model.head_dim * len(model.layers) * (3 if trains else 1),
        )

    def of_step(self, lengths: Iterable[int], num_supervised: float) -> float:
        """
        Args:
            lengths: of the rows.
            num_supervised: tokens that meet the output layer.
        """
        tokens, pairs = 0, 0.0
        for length in lengths:
            tokens += length
            pairs += length * (length + 1) / 2
        return self.per_token * tokens + self.per_supervised_token * num_supervised + self.per_attended_pair * pairs


def flops_of_models(student: TransformerDecoder, teachers: Sequence[TransformerDecoder]) -> list[ModelFlops]:
    """Of those that take part in a step: the student trains, teachers run forward."""
    return [ModelFlops.of(student, trains=True), *(ModelFlops.of(teacher, trains=False) for teacher in teachers)]


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
        teacher: or None.
        num_devices: that share the steps.
    """

    def __init__(
        self,
        student: TransformerDecoder,
        teachers: Sequence[TransformerDecoder],
        device: torch.device,
        dtype: torch.dtype,
        num_devices: int = 1,
    ) -> None:
        self._models = flops_of_models(student, teachers)
        peak = peak_flops(device, dtype)
        self._peak = peak * num_devices if peak else None

    def of_step(self, lengths: Iterable[int], num_supervised: int, seconds: float) -> dict[str, float]:
        """``{"model_flops_utilization": share}``, or nothing where the device's peak is not known."""
        if self._peak is None:
            return {}
        lengths = list(lengths)
        flops = sum(model.of_step(lengths, num_supervised) for model in self._models)
        return {"model_flops_utilization": flops / seconds / self._peak}
