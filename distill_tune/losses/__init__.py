"""Losses over logits and hidden states: tensors in, sums out. Knows nothing of torchtune, files or distribution."""

from distill_tune.losses.aligned import Aligned, AlignedMethod, AlignedPositions, AlignedWord, TokenClasses
from distill_tune.losses.byte_prefix import BytePrefixMass
from distill_tune.losses.chunk_likelihood import ChunkLikelihood
from distill_tune.losses.clipped import ClippedPerToken
from distill_tune.losses.cross_entropy import CrossEntropy
from distill_tune.losses.distances import LogitMSE, TotalVariation
from distill_tune.losses.divergences import AdaptiveKL, Distribution, Divergence, ForwardKL, ReverseKL, SymmetricKL
from distill_tune.losses.gold import Gold
from distill_tune.losses.head import LossSums, chunk_bytes_per_row, chunk_rows, distillation_loss, per_token
from distill_tune.losses.hidden import HiddenLoss
from distill_tune.losses.likelihoods import TokenLikelihoods
from distill_tune.losses.mixture import aligned_method
from distill_tune.losses.mixture_divergences import JensenShannon, SkewedForwardKL, SkewedReverseKL
from distill_tune.losses.projection import AutogradProjection, LinearProjection, Projection
from distill_tune.losses.signals import (
    DenseLogits,
    HiddenStates,
    MixtureOfTeachers,
    SumOfTeachers,
    TeacherOfEachRow,
    TeacherSignal,
)
from distill_tune.losses.sparse import SampledTokens, SparseSignal, TopTokens
from distill_tune.losses.token_weights import TargetProbability, TeacherCertainty, TokenWeight
from distill_tune.losses.top_k import TopK
from distill_tune.losses.universal_logit import UniversalLogit
from distill_tune.losses.unserved import unserved

__all__ = [
    "AdaptiveKL",
    "Aligned",
    "AlignedMethod",
    "AlignedPositions",
    "AlignedWord",
    "AutogradProjection",
    "BytePrefixMass",
    "ChunkLikelihood",
    "ClippedPerToken",
    "CrossEntropy",
    "DenseLogits",
    "Distribution",
    "Divergence",
    "ForwardKL",
    "Gold",
    "HiddenLoss",
    "HiddenStates",
    "JensenShannon",
    "LinearProjection",
    "LogitMSE",
    "LossSums",
    "MixtureOfTeachers",
    "Projection",
    "ReverseKL",
    "SampledTokens",
    "SkewedForwardKL",
    "SkewedReverseKL",
    "SparseSignal",
    "SumOfTeachers",
    "SymmetricKL",
    "TargetProbability",
    "TeacherCertainty",
    "TeacherOfEachRow",
    "TeacherSignal",
    "TokenClasses",
    "TokenLikelihoods",
    "TokenWeight",
    "TopK",
    "TopTokens",
    "TotalVariation",
    "UniversalLogit",
    "aligned_method",
    "chunk_bytes_per_row",
    "chunk_rows",
    "distillation_loss",
    "per_token",
    "unserved",
]
