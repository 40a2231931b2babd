"""A teacher that runs beside the student."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from omegaconf import DictConfig
from torch.distributed.fsdp import FSDPModule

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.batch import Batch
from distill_tune.losses import HiddenStates
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.gguf import GGUFCheckpoint
from distill_tune.teachers.load import load_gguf, load_quantised_or_streamed
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder


class LiveTeacher(Teacher):
    """A frozen model in eval mode, whose last hidden states and output projection are the signal.

    Args:
        model: with its weights, or on the meta device until :meth:`load`.
        checkpoint: where its weights are.
        quantizer, offload: see :func:`~distill_tune.teachers.load.load_quantised_or_streamed`; such a teacher lies
            whole on each of several processes.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        checkpoint: Checkpoint | None = None,
        *,
        quantizer: DictConfig | None = None,
        offload: bool = False,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.head = models.take_output_head(model)
        self.models = [model]
        self.num_layers, self.width = len(model.layers), model.tok_embeddings.weight.shape[1]
        self.checkpoint, self._quantizer, self._offload = checkpoint, quantizer, offload
        if checkpoint is not None:
            self.folders, self.files = [checkpoint.folder], checkpoint.all_files

    @property
    def vocab_size(self) -> int:
        return self.head.vocab_size

    @property
    def max_seq_len(self) -> int:
        return self.model.max_seq_len

    @property
    def is_plain(self) -> bool:
        """Whether its weights lie on the device as they are: not quantised, not in blocks, not streamed."""
        return not (self._quantizer or self._offload or isinstance(self.checkpoint, GGUFCheckpoint))

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        if self.checkpoint is not None:
            self.other_tokens = models.check_tokenizers(checkpoint.folder, self.checkpoint.folder, tokenizer)
        return self.vocab_size

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        models.require_rows("teacher_model", self.model, longest, int(used_tokens[-1]))
        for folder in self.folders:
            models.require_same_tokens(self.other_tokens, used_tokens, folder)

    def own_bytes(self, is_sharded: bool) -> float | None:
        if not isinstance(self.checkpoint, GGUFCheckpoint) or is_sharded or self._quantizer or self._offload:
            return None
        dtype = next(self.model.parameters()).dtype
        plain = sum(map(models.num_bytes, self.model.parameters()))
        return plain + sum(stored - dtype.itemsize * weights for weights, stored in self.checkpoint.block_sizes())

    def keep_hidden_states(self, layers: Sequence[int]) -> None:
        models.keep_hidden_states(self.model, layers)

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        assert self.checkpoint is not None
        if compile:
            models.compile_layers(self.model)
        if isinstance(self.checkpoint, GGUFCheckpoint) and not (shard or self._quantizer or self._offload):
            load_gguf(self.model, self.checkpoint, device)
        elif self._quantizer is not None or self._offload:
            load_quantised_or_streamed(self.model, self.checkpoint, device, self._quantizer, self._offload)
        else:
            models.load_weights(self.model, self.checkpoint, shard(self.model) if shard else device)

    def __call__(self, batch: Batch) -> HiddenStates:
        """The signal for a batch's supervised positions: hidden states ``[n, d]``."""
        batch = batch.for_teacher
        supervised = batch.supervised_positions
        # FSDP reads version counters, which tensors made in inference mode have not; nor can a loss keep such tensors.
        plain = isinstance(self.model, FSDPModule) or bool(self.model.output_hidden_states)
        with torch.no_grad() if plain else torch.inference_mode():
            hidden, layers = models.hidden_states(self.model, batch.tokens, batch.attention())
            self.head.gather()
        return HiddenStates(hidden[0, supervised], self.head.projection_for_loss(), layers, supervised)

    def release(self) -> None:
        """Give back what a sharded teacher has gathered for a step: embeddings and output layer."""
        self.head.release()
        if isinstance(self.model, FSDPModule):
            self.model.reshard()
