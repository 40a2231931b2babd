"""A causal language model of transformers as teacher: any architecture that torchtune lacks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.batch import Batch
from distill_tune.errors import UserError
from distill_tune.losses import AutogradProjection, HiddenStates, LinearProjection
from distill_tune.losses.signals import capped
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.teachers.hf_folder import HuggingFaceFolder
from distill_tune.teachers.teacher import Shard, Teacher
from distill_tune.to_device import to_device

from torchtune.modules import TransformerDecoder

_PROBE = 16  # tokens
_NO_TEACHER = "this architecture cannot be a teacher by logits"
_NO_PRODUCT = f"its logits are not its output layer's product with its last hidden states; {_NO_TEACHER}"
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class HuggingFace(Teacher):
    """Runs the model's decoder; its output embeddings are the head. Lies whole on each of several processes.

    Where the model scales or caps its logits its config says so, or the first tokens do: head and hidden states must
    give the model's own logits, which is checked when it loads.

    Args:
        path: a local folder: a model's, quantised or not, or a PEFT adapter's, which is read on its base.
        trust_remote_code: run the folder's own Python code.

    Attributes:
        model: transformers' own; known after :meth:`load`.

    Raises:
        UserError: see :class:`HuggingFaceFolder`.
    """

    dtype: torch.dtype = torch.float32

    def __init__(self, path: str, trust_remote_code: bool = False) -> None:
        self._path = Path(os.path.expanduser(path))
        self._folder = HuggingFaceFolder(self._path, trust_remote_code)
        self.folders, self.files = [self._folder.base], self._folder.files
        self._config = self._folder.config.get_text_config()
        self.num_layers, self.width = self._config.num_hidden_layers, self._config.hidden_size
        self._softcap = getattr(self._config, "final_logit_softcapping", None)
        self._layers: Sequence[int] = ()
        self._scale = 1.0

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        self.other_tokens = models.check_tokenizers(checkpoint.folder, self._folder.base, tokenizer)
        return self.vocab_size

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        models.require_tokens("teacher_model", self._config.vocab_size, int(used_tokens[-1]))
        models.require_same_tokens(self.other_tokens, used_tokens, self._folder.base)
        most = self.max_seq_len
        if most is not None and longest > most:
            raise UserError(f"dataset: its longest sequence has {longest} tokens, teacher_model reads {most} at most")

    @property
    def max_seq_len(self) -> int | None:
        """Tokens of a row; None where its config does not say."""
        return getattr(self._config, "max_position_embeddings", None)

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    def own_bytes(self, is_sharded: bool) -> float | None:
        """As stored, where it is quantised; else in its dtype."""
        weights = self._folder.weights_of_decoder().values()
        as_stored = self._folder.is_quantised
        return sum(w.numel() * (w.element_size() if as_stored else self.dtype.itemsize) for w in weights)

    @property
    def num_parameters(self) -> int:
        """However they are stored."""
        return self._folder.num_parameters

    def num_active_weights(self) -> float:
        """That a token is multiplied by, between embeddings and output layer: of experts those that it is sent to."""
        config, found = self._config, 0.0
        names = ("num_local_experts", "num_experts", "n_routed_experts")
        experts = next((getattr(config, name) for name in names if getattr(config, name, None)), 0)
        share = getattr(config, "num_experts_per_tok", experts) / experts if experts else 1.0
        for name, weight in self._folder.unquantised_shapes().items():
            if weight.ndim >= 2:
                found += weight.numel() * (share if ".experts." in name else 1.0)
        return found

    def keep_hidden_states(self, layers: Sequence[int]) -> None:
        self._layers = layers

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        model = self.model = self._folder.load(device, self.dtype)
        self._decoder, self._head = _decoder_of(model), model.get_output_embeddings()
        if not isinstance(self._head, nn.Module):
            raise self._refused(f"it has no output layer; {_NO_TEACHER}")
        self._find_scale(model, device)
        self._projection = self._projection_of_head()
        if compile:
            models.compile_module(self._decoder)

    def _projection_of_head(self) -> LinearProjection | AutogradProjection:
        """Of an output layer that is quantised or has an adapter, the layer itself."""
        head, scale = self._head, self._scale
        weight: Any = getattr(head, "weight", None)
        if type(head) is nn.Linear and weight.dtype.itemsize > 1 and not is_traceable_wrapper_subclass(weight.data):
            if not weight.isfinite().all():
                raise self._refused("its output layer has weights that are infinite or no numbers")
            bias = head.bias if head.bias is None or scale == 1 else head.bias * scale
            return LinearProjection(weight, bias, self._softcap)
        self._scale = 1.0  # of hidden states, which such a layer need not keep to
        project = head if scale == 1 else lambda hidden: head(hidden) * scale
        return AutogradProjection(project, self._vocab_size, softcap=self._softcap)

    @torch.no_grad()
    def _find_scale(self, model: Any, device: torch.device) -> None:
        """Some models multiply their logits by a constant of their own.

        A logit may be minus infinity, where a token cannot be: in head and model alike.
        """
        tokens = torch.arange(_PROBE, device=device)[None] % self._config.vocab_size
        wanted = model(tokens).logits[0].float()  # [s, v]
        hidden = getattr(self._decoder(tokens), "last_hidden_state", None)
        if hidden is None:
            kind = type(self._decoder).__name__
            raise self._refused(f"its {kind} gives no last hidden state; {_NO_TEACHER}")
        found = self._head(hidden)[0].float()
        self._vocab_size = wanted.shape[-1]
        possible = wanted.isfinite()
        if not (possible | (wanted == -torch.inf)).all() or not possible.any(-1).all():
            raise self._refused("it gives logits that are infinite or no numbers")
        if self._softcap is not None:
            found = capped(found, self._softcap)
        if not torch.equal(found.isfinite(), possible):
            raise self._refused(_NO_PRODUCT)
        found, wanted = found[possible], wanted[possible]
        if self._softcap is None:
            self._scale = ((found * wanted).sum() / found.square().sum()).item()
            self._scale = 1.0 if abs(self._scale - 1) < _TOLERANCE[self.dtype] else self._scale
            found = found * self._scale
        off = ((found - wanted).norm() / wanted.norm()).item()
        if not off <= _TOLERANCE[self.dtype]:
            raise self._refused(f"{_NO_PRODUCT} (off by {off:.1%})")

    def _refused(self, reason: str) -> UserError:
        return UserError(f"teacher_model.path={self._path}: {reason}")

    @torch.no_grad()
    def __call__(self, batch: Batch) -> HiddenStates:
        batch = batch.for_teacher
        rows = batch.tokens[0].split(list(batch.lengths))
        found: dict[int, list[torch.Tensor]] = {}  # of each row its last hidden states, then those of the layers
        for group in _padded_together(batch.lengths):
            tokens = nn.utils.rnn.pad_sequence([rows[row] for row in group], batch_first=True)  # [b, s]
            lengths = torch.tensor([batch.lengths[row] for row in group])
            mask = to_device((torch.arange(tokens.shape[1]) < lengths[:, None]).long(), tokens.device)
            out = self._decoder(tokens, attention_mask=mask, output_hidden_states=bool(self._layers))
            states = [out.last_hidden_state, *(out.hidden_states[layer] for layer in self._layers)]
            for place, row in enumerate(group):
                found[row] = [of[place, : batch.lengths[row]] for of in states]
        hidden, *layers = (torch.cat(parts) for parts in zip(*(found[row] for row in range(len(rows))), strict=True))
        hidden = hidden[batch.supervised_positions]
        hidden = hidden if self._scale == 1 else hidden * self._scale
        return HiddenStates(hidden, self._projection, layers, batch.supervised_positions)


def _padded_together(lengths: Sequence[int]) -> list[list[int]]:
    """Which rows are padded to one length: no group has more positions than four times the tokens of all rows."""
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= 4 * sum(lengths):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _decoder_of(model: Any) -> Any:
    """What of a causal language model gives its last hidden state."""
    if model.base_model is not model:
        return model.base_model
    if (decoder := model.get_decoder()) is not model:
        return decoder
    # A class may name another base than it has, as Llama 4's does: the part with the embeddings is it.
    embeddings = model.get_input_embeddings()
    parts = [part for part in model.children() if part is not embeddings and embeddings in set(part.modules())]
    return parts[0] if parts else model
