"""Whether a model is right as often as it is sure."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_BINS = 15  # as most papers have it

Array = NDArray[np.float64]


def calibration_sums(confidence: Array, correct: NDArray[np.bool_]) -> Array:
    """What :func:`calibration` needs of some tokens; those of several documents are added.

    Args:
        confidence: the probability of the likeliest token, ``[n]``.
        correct: whether that is the token of the text, ``[n]``.

    Returns:
        tokens, their confidence and how many of them are correct, in each of bins of equal width, ``[3, bins]``.
    """
    # A bin is above its lower bound, up to and with its upper one: Guo et al. 2017.
    bins = np.clip(np.ceil(np.asarray(confidence, dtype=np.float64) * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    weights = (None, confidence, correct)
    return np.stack([np.bincount(bins, weight, NUM_BINS).astype(np.float64) for weight in weights])


def calibration(sums: Array) -> dict[str, Any]:
    """The expected calibration error (Guo et al. 2017): by how much confidence and accuracy differ, in the mean over
    tokens, bin by bin.

    Args:
        sums: of :func:`calibration_sums`, ``[3, bins]``.

    Returns:
        ``ece``, and ``bins`` with ``confidence``, ``accuracy`` and ``tokens`` of each that is not empty; of no tokens
        ``ece`` is None.
    """
    tokens, confidence, correct = sums[:, sums[0] > 0]
    ece = float(np.abs(confidence - correct).sum() / tokens.sum()) if len(tokens) else None
    bins = [
        {"confidence": float(sure / n), "accuracy": float(right / n), "tokens": int(n)}
        for n, sure, right in zip(tokens, confidence, correct, strict=True)
    ]
    return {"ece": ece, "bins": bins}
