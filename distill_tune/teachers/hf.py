"""A causal language model of transformers as teacher: any architecture that torchtune lacks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import nn

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.batch import Batch
from distill_tune.errors import UserError
from distill_tune.losses import HiddenStates, LinearProjection
from distill_tune.losses.signals import capped
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder

_PROBE = 16  # tokens
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class HuggingFace(Teacher):
    """Runs the model's decoder; its output embeddings are the head. Lies whole on each of several processes.

    Where the model scales or caps its logits its config says so, or the first tokens do: head and hidden states must
    give the model's own logits, which is checked when it loads.

    Args:
        path: a local folder.
        trust_remote_code: run the folder's own Python code.

    Needs transformers: ``pip install 'distill-tune[hf]'``.
    """

    dtype: torch.dtype = torch.float32

    def __init__(self, path: str, trust_remote_code: bool = False) -> None:
        self._path, self._trust = Path(os.path.expanduser(path)), trust_remote_code
        try:
            import transformers
        except ImportError as error:
            raise UserError(
                "teacher_model: distill_tune.teachers.HuggingFace needs transformers; pip install 'distill-tune[hf]'"
            ) from error
        self._transformers = transformers
        if not (self._path / "config.json").is_file():
            raise UserError(f"teacher_model.path={path}: no such folder, or it has no config.json")
        try:
            config = transformers.AutoConfig.from_pretrained(self._path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"teacher_model.path={path}: {str(error).splitlines()[0]}") from error
        self._config = config.get_text_config()
        self.num_layers, self.width = self._config.num_hidden_layers, self._config.hidden_size
        self._softcap = getattr(self._config, "final_logit_softcapping", None)
        self._layers: Sequence[int] = ()
        self._scale = 1.0

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        self.folders = [self._path]
        self._differing = models.check_tokenizers(checkpoint.folder, self._path, tokenizer)
        return models.common_vocabulary(student, self._config.vocab_size)

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        models.require_tokens("teacher_model", self._config.vocab_size, int(used_tokens[-1]))
        models.require_same_tokens(self._differing, used_tokens, self._path)
        most = getattr(self._config, "max_position_embeddings", None)
        if most is not None and longest > most:
            raise UserError(f"dataset: its longest sequence has {longest} tokens, teacher_model reads {most} at most")

    def keep_hidden_states(self, layers: Sequence[int]) -> None:
        self._layers = layers

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        try:
            model: Any = self._transformers.AutoModelForCausalLM.from_pretrained(
                self._path, dtype=self.dtype, trust_remote_code=self._trust, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise UserError(f"teacher_model.path={self._path}: {str(error).splitlines()[0]}") from error
        model = model.to(device).eval().requires_grad_(False)
        self._decoder, self._head = model.base_model, model.get_output_embeddings()
        if not isinstance(self._head, nn.Linear):
            raise UserError(f"teacher_model.path={self._path}: its output layer is a {type(self._head).__name__}")
        self._find_scale(model, device)
        bias = self._head.bias
        scaled_bias = bias if bias is None or self._scale == 1 else bias * self._scale
        self._projection = LinearProjection(self._head.weight, scaled_bias, self._softcap)
        if compile:
            self._decoder.compile()

    @torch.no_grad()
    def _find_scale(self, model: Any, device: torch.device) -> None:
        """Some models multiply their logits by a constant of their own."""
        tokens = torch.arange(_PROBE, device=device)[None] % self._config.vocab_size
        wanted = model(tokens).logits[0].float()
        found = self._head(self._decoder(tokens).last_hidden_state)[0].float()
        if self._softcap is None:
            self._scale = ((found * wanted).sum() / found.square().sum()).item()
            self._scale = 1.0 if abs(self._scale - 1) < _TOLERANCE[self.dtype] else self._scale
            found = found * self._scale
        else:
            found = capped(found, self._softcap)
        off = ((found - wanted).norm() / wanted.norm()).item()
        if off > _TOLERANCE[self.dtype]:
            raise UserError(
                f"teacher_model.path={self._path}: its logits are not its output layer's product with its last hidden "
                f"states (off by {off:.1%}); this architecture cannot be a teacher by logits"
            )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> HiddenStates:
        batch = batch.for_teacher
        rows = batch.tokens[0].split(list(batch.lengths))
        tokens = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)  # [b, s]
        lengths = torch.tensor(batch.lengths, device=tokens.device)
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        out = self._decoder(tokens, attention_mask=mask.long(), output_hidden_states=bool(self._layers))
        hidden, supervised = out.last_hidden_state[mask], batch.supervised[0]  # [s, d], [s]
        layers = [out.hidden_states[layer][mask] for layer in self._layers]
        hidden = hidden[supervised]
        return HiddenStates(hidden if self._scale == 1 else hidden * self._scale, self._projection, layers, supervised)
