"""Losses over logits: tensors in, sums out. Nothing here knows of torchtune, files or distribution."""

from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.divergences import Divergence, ForwardKL
from distill_tune.losses.head import LossSums, distillation_loss
from distill_tune.losses.signals import DenseLogits, HiddenStates, TeacherSignal

__all__ = [
    "CrossEntropy",
    "DenseLogits",
    "Divergence",
    "ForwardKL",
    "HiddenStates",
    "LossSums",
    "TeacherSignal",
    "distillation_loss",
]
