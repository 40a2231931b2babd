"""A teacher that runs beside the student."""

from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import Batch
from distill_tune.losses import HiddenStates
from distill_tune.models.output_head import take_output_head

from torchtune.modules import TransformerDecoder


class LiveTeacher:
    """A frozen model in eval mode, whose last hidden states and output projection are the signal."""

    def __init__(self, model: TransformerDecoder) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head = take_output_head(model)

    @property
    def vocab_size(self) -> int:
        return self.head.vocab_size

    def __call__(self, batch: Batch, attention: dict[str, Any]) -> HiddenStates:
        """The signal for a batch's supervised positions: hidden states ``[n, d]``."""
        # FSDP reads version counters, which tensors made in inference mode have not.
        with torch.no_grad() if isinstance(self.model, FSDPModule) else torch.inference_mode():
            hidden = self.model(batch.tokens, **attention)[batch.supervised]  # [1, s, d] -> [n, d]
            self.head.gather()
        return HiddenStates(hidden, self.head.projection_for_loss())

    def release(self) -> None:
        """Give back what a sharded teacher has gathered for a step: embeddings and output layer."""
        self.head.release()
        if isinstance(self.model, FSDPModule):
            self.model.reshard()
