"""A teacher that need not be there: its word was stored by recipes/teacher_cache.py."""

import hashlib
import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.cache import AnyEncoding, CacheReader, HiddenEncoding, Manifest, read_output_layer, read_vocabulary
from distill_tune.counts import counted
from distill_tune.data.batch import Batch
from distill_tune.data.dates import day_of_run
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError
from distill_tune.losses import (
    Divergence,
    HiddenStates,
    LinearProjection,
    SparseSignal,
    TokenLikelihoods,
    TokenWeight,
    unserved,
)
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.vocabulary import Vocabulary, written_by
from distill_tune.teachers.recorded import signal_of
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder

_SHOWN = 3
_READ_OTHERWISE = (
    "where they are the rows that it was made for, they are read otherwise now: set max_seq_len, train_on_input, "
    "prompts and templates back; else "
)


class Cached(Teacher):
    """Finds each row's signal by what the row contains: order, packing, weights and number of processes are free.

    Args:
        path: the folder that teacher_cache has written.

    Raises:
        UserError: there is no cache, or none that is whole.
    """

    dtype: torch.dtype = torch.float32
    answers_new_rows = False

    def __init__(self, path: str) -> None:
        self._told = f"teacher_model.path={path}"
        try:
            self._cache = CacheReader(Path(os.path.expanduser(path)))
        except UserError as error:
            raise UserError(f"{self._told}: {error}") from error
        self._encoding = self._cache.encoding
        self.record_kind = "" if isinstance(self._encoding, HiddenEncoding) else self._encoding.kind
        self.names = tuple(self._cache.manifest.teacher.get("names") or ())
        self._differing: dict[int, str] = {}
        self._projection: LinearProjection | None = None
        self._contents: list[str] = []

    @property
    def vocab_size(self) -> int:
        return self._encoding.vocab_size

    def vocabulary(self) -> Vocabulary | None:
        return read_vocabulary(self._cache.folder)

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        rows, its = written_by(tokenizer) or Vocabulary.of(checkpoint.folder), read_vocabulary(self._cache.folder)
        if rows is not None and its is not None:
            writer = getattr(tokenizer, "folder", checkpoint.folder)
            told = f"{self._told}: its teacher's tokenizer is not that of {writer}; name its own as teacher_tokenizer"
            self._differing = rows.require_same_ordinary(its, told)
        return self.vocab_size

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        models.require_same_tokens(self._differing, used_tokens, self._cache.folder)

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        require_served_by(self._encoding, self._told, divergence, token_weight, temperature, combination)

    def require_signals(self, datasets: Sequence[TokenisedRows], augmented: bool, number: int | None = None) -> None:
        require_lasting_prompts(self._told, datasets, augmented)
        missing, total = list[str](), 0
        read = list[bytes]()
        for rows in datasets:
            asked = numpy.arange(len(rows))
            if number is not None and rows.teacher_ids is not None:
                asked = (rows.teacher_ids == number).nonzero()[:, 0].numpy()
            total += len(asked)
            keys = rows.record_keys if number is None else rows.digests  # one of several has a cache of its own
            digests = [keys[row] for row in asked.tolist()]
            lacking = asked[self._cache.find(digests) < 0]
            missing += [rows.origin(row) for row in lacking.tolist()]
            read += digests
        if not missing:
            # Of the rows alone: a cache that has grown since is the same to a run that goes on.
            self._contents.append(self._cache.content_of(read))
            self.content = hashlib.sha256("".join(self._contents).encode()).hexdigest()
            return
        raise UserError(
            f"{self._told}: {what_it_lacks(self._cache.manifest, missing, len(missing), total)}"
            "add them with the teacher at hand: distill-tune run teacher_cache with this dataset and "
            f"output_dir={self._cache.folder}; or as they come: the teacher as teacher_model, and "
            f"teacher_cache={self._cache.folder}"
        )

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        if isinstance(self._encoding, HiddenEncoding):
            self._projection = read_output_layer(self._cache.folder, device)

    def __call__(self, batch: Batch) -> SparseSignal | TokenLikelihoods | HiddenStates:
        record = self._encoding.decode(self._cache.rows(batch.record_keys))
        batch = batch.for_teacher
        num_positions = len(batch.supervised_positions)
        if len(record) != num_positions:
            raise UserError(f"{self._told}: has {len(record)} positions of rows with {num_positions}; make it anew")
        return signal_of(record, batch, self._projection)


def what_it_lacks(manifest: Manifest, missing: Iterable[str], num_missing: int, total: int) -> str:
    """Which of a total of rows a cache lacks, and why that may be; it ends in ``; ``, before what can be done.

    Args:
        missing: where the rows are from.
    """
    date, today = manifest.date, day_of_run()
    as_of = f" (it was made with date={date}, which a chat template may write)" if date not in (None, today) else ""
    more = f" and {num_missing - _SHOWN:,} more" if num_missing > _SHOWN else ""
    named = "; ".join(itertools.islice(missing, _SHOWN)) + more
    otherwise = "" if num_missing < total else _READ_OTHERWISE
    return f"lacks {num_missing:,} of {counted(total, 'row')}{as_of}: {named}; {otherwise}"


def require_served_by(
    encoding: AnyEncoding,
    told: str,
    divergence: Divergence,
    token_weight: TokenWeight | None,
    temperature: float | None,
    combination: str | None = None,
) -> None:
    """
    Args:
        told: key and value that name the cache.
        temperature: of the whole run; None where it changes.

    Raises:
        UserError: records of this encoding cannot serve the loss.
    """
    if isinstance(encoding, HiddenEncoding):
        return
    reason = unserved(
        encoding.kind,
        divergence,
        token_weight,
        temperature=temperature,
        recorded_temperature=encoding.temperature,
        k=getattr(encoding, "k", None),
        combination=combination,
    )
    if reason:
        raise UserError(f"{told}: {reason}")


def require_lasting_prompts(told: str, datasets: Sequence[TokenisedRows], augmented: bool) -> None:
    """
    Raises:
        UserError: the prompts that the teacher reads change each time.
    """
    if augmented and any(rows.teacher is None and not rows.others for rows in datasets):
        raise UserError(
            f"{told}: augmentations make prompts that no cache has; leave them out, or give the teacher a prompt of "
            "its own"
        )
