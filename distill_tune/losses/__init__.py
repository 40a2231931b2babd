"""Losses over logits: tensors in, sums out. Nothing here knows of torchtune, files or distribution."""

from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import Divergence, ForwardKL
from distill_tune.losses.head import LossSums, chunk_bytes_per_row, chunk_rows, distillation_loss
from distill_tune.losses.projection import AutogradProjection, LinearProjection, Projection
from distill_tune.losses.signals import DenseLogits, HiddenStates, TeacherSignal

__all__ = [
    "AutogradProjection",
    "CrossEntropy",
    "DenseLogits",
    "Divergence",
    "ForwardKL",
    "HiddenStates",
    "LinearProjection",
    "LossSums",
    "Projection",
    "TeacherSignal",
    "chunk_bytes_per_row",
    "chunk_rows",
    "distillation_loss",
]
