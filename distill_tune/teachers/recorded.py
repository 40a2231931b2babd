"""Records of a teacher's word, stored or served, as the signal of a batch."""

import torch

from distill_tune.data.batch import Batch
from distill_tune.losses import HiddenStates, LinearProjection, SparseSignal, TokenLikelihoods
from distill_tune.to_device import to_device


def signal_of(
    record: SparseSignal | TokenLikelihoods | torch.Tensor, batch: Batch, projection: LinearProjection | None
) -> SparseSignal | TokenLikelihoods | HiddenStates:
    """
    Args:
        record: of the supervised positions; hidden states ``[n, d]`` or what has no logits, on the CPU.
        batch: as the teacher reads it; the signal goes to its device.
        projection: the output layer of hidden states.
    """
    device = batch.tokens.device
    if not isinstance(record, torch.Tensor):
        return record.to(device)
    assert projection is not None
    hidden = to_device(record, device).to(projection.weight.dtype)
    return HiddenStates(hidden, projection, (), batch.supervised_positions)
