"""`teacher_cache` of a run: a cache before its teacher, which is asked about the rows that are missing, each once."""

import gc
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import cache, teachers
from distill_tune.counts import counted
from distill_tune.data.batch import Batch, joined
from distill_tune.data.plan import StepPlan
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError
from distill_tune.losses import Divergence, HiddenStates, LinearProjection, SparseSignal, TokenLikelihoods, TokenWeight
from distill_tune.models.vocabulary import Vocabulary
from distill_tune.sizes import binary
from distill_tune.teachers.recorded import signal_of
from distill_tune.training.distributed import from_main_process, is_main_process, on_all_ranks, rank, wait_for_all
from distill_tune.training.growing_cache import GrowingCache, list_shards, list_what_is_there
from distill_tune.training.lost_teacher import is_lost
from distill_tune.training.missing_rows import MissingRows
from distill_tune.training.teacher_cache import (
    begin_described,
    recorded,
    write_output_layer,
)

from torchtune.modules import TransformerDecoder

KEY = "teacher_cache"


class WriteThrough(teachers.Teacher):
    """Gives a row's record from a cache. Of a row that is missing there the teacher behind it is asked, and its word
    recorded, which from then on is all that a step sees of it: the first time is as every other.

    All ranks have the same view of what is missing. Once nothing is, the teacher is let go.

    Args:
        live: checked.
        folder: of the cache, which need not be there yet.
        encoding: of its records.
    """

    answers_new_rows = False

    def __init__(self, live: teachers.Teacher, folder: Path, encoding: cache.AnyEncoding) -> None:
        self._live, self.folder, self.encoding = live, folder, encoding
        self._told = f"{KEY}={folder}"
        self.names, self.files, self.folders, self.content = live.names, live.files, live.folders, live.content
        self.models, self.may_be_lost = live.models, live.may_be_lost
        self._needed: frozenset[bytes] = frozenset()
        self._validation: StepPlan | None = None
        self._missing = MissingRows()
        self._is_let_go = False
        self._num_live = len(live.each(Shape((), ())))
        self._records: GrowingCache | None = None
        self._projection: LinearProjection | None = None

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        teachers.require_served_by(self.encoding, self._told, divergence, token_weight, temperature, combination)

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        self._live.require_rows(longest, used_tokens)

    def require_signals(self, datasets: Sequence[TokenisedRows], augmented: bool, number: int | None = None) -> None:
        teachers.require_lasting_prompts(self._told, datasets, augmented)

    def prepare(
        self,
        manifest: cache.Manifest,
        vocabulary: Vocabulary | None,
        datasets: Sequence[TokenisedRows],
        of_steps: frozenset[bytes],
        validation: StepPlan | None,
    ) -> str:
        """What the run will read; what there is of it, in a line. From then on ``content`` is that of the records.

        Args:
            manifest: of the cache as this run would make it.
            datasets: of which the rows of the steps are.
            of_steps: digests of these rows.
        """
        datasets = [*datasets, *(validation.datasets if validation else ())]
        self._manifest, self._vocabulary, self._datasets = manifest, vocabulary, datasets
        of_validation = (rows.as_teacher_reads.record_keys for rows in validation.datasets) if validation else ()
        # A run that goes on must be trained on the same records.
        made = json.dumps([self.content, manifest.kind, dict(manifest.settings), manifest.seed], sort_keys=True)
        self.content = hashlib.sha256(made.encode()).hexdigest()
        self._of_steps, self._needed, self._validation = of_steps, of_steps.union(*of_validation), validation
        lacking = from_main_process(self._lacking())
        self._missing = MissingRows(lacking, of_steps)
        total = counted(len(self._needed), "row")
        if not lacking and from_main_process(self._lacks_output_layer()):
            return f"{self._told}: has all {total}, but not the output layer, for which alone the teacher is loaded"
        if not lacking:
            self._let_go()
            return f"{self._told}: has all {total}; the teacher is not loaded"
        found = dict[bytes, tuple[TokenisedRows, int]]()  # the first row of each content
        for of in datasets:
            of = of.as_teacher_reads
            for row, digest in enumerate(of.record_keys):
                if digest in lacking:
                    found.setdefault(digest, (of, row))
        num_bytes = self.encoding.bytes_of_position()[0] * sum(int(of.supervised[row]) for of, row in found.values())
        lacks = f"lacks {len(lacking):,} of {total}; "
        if (was := cache.cache_there(self.folder, KEY)) is not None:
            missing = (of.origin(row) for of, row in found.values())
            lacks = teachers.what_it_lacks(was, missing, len(lacking), len(self._needed))
        return f"{self._told}: {lacks}the teacher is asked about each once, which adds some {binary(num_bytes)}"

    def _lacking(self) -> set[bytes]:
        """Of the rows that are read, those that the cache lacks."""
        if cache.cache_there(self.folder, KEY) is None:
            return set(self._needed)
        reader, needed = cache.CacheReader(self.folder, unfinished=True), list(self._needed)
        return {needed[at] for at in (reader.find(needed) < 0).nonzero()[0].tolist()}

    def _lacks_output_layer(self) -> bool:
        """Without which hidden states say nothing; of one that is damaged, too."""
        if self.encoding.kind != cache.HiddenEncoding.kind:
            return False
        layer = self.folder / cache.OUTPUT_LAYER
        return not layer.exists() or layer in cache.damaged_beside(self.folder, cache.Manifest.read(self.folder))

    def each(self, shape: Shape) -> list[tuple[teachers.Teacher, Shape]]:
        if self._is_let_go:
            return self._num_live * [(teachers.Teacher(), Shape((), ()))]
        return self._live.each(shape)

    @property
    def num_asked(self) -> int:
        """Of the rows that the steps read, those about which the teacher is yet to be asked."""
        return self._missing.num_of_steps

    def asked_as(self, other: "WriteThrough") -> None:
        """Take what another has prepared, of the same rows."""
        self._missing = other._missing
        if other._is_let_go:
            self._let_go()

    # ---- While the run goes on

    def load(
        self,
        student: TransformerDecoder,
        device: torch.device,
        *,
        shard: teachers.Shard | None = None,
        compile: bool = False,
    ) -> None:
        """
        Raises:
            UserError: as the teacher's; the cache cannot be written, or another run is writing there.
        """
        if not self._is_let_go:
            self._manifest = begin_described(self.folder, self._manifest, self._vocabulary, KEY)
            # Nobody else writes there from now on.
            self._missing = MissingRows(from_main_process(self._lacking()), self._of_steps)
            self._records = GrowingCache(self.folder, KEY, is_added_to=True)
            self._live.load(student, device, shard=shard, compile=compile)
            self._write_output_layer(device)
            if not self._missing:
                self._finish()
        else:
            if is_main_process():
                list_what_is_there(self.folder, self._datasets)
            self._records = GrowingCache(self.folder, KEY, is_added_to=False)
        if self.encoding.kind == cache.HiddenEncoding.kind:
            self._projection = cache.read_output_layer(self.folder, device)

    def _write_output_layer(self, device: torch.device) -> None:
        """Where hidden states need it, and it is not there."""
        if self.encoding.kind != cache.HiddenEncoding.kind:
            return
        if not from_main_process((self.folder / cache.OUTPUT_LAYER).exists()):
            _, output_layer = recorded(self._live, self.encoding, joined(()).to(device), self._manifest.seed)
            write_output_layer(self.folder, output_layer)
            wait_for_all()
            self._live.release()

    def expect(self, batches: Iterator[Batch]) -> None:
        self._live.expect(self._missing.expected(batches))

    def lost(self, batches: Sequence[Batch]) -> str | None:
        return self._live.lost(self._missing.asked_for(batches))

    def __call__(self, batch: Batch) -> SparseSignal | TokenLikelihoods | HiddenStates:
        """
        Raises:
            UserError: as the teacher's; the disk is full; rows that another process has written are not there.
        """
        found = self._records_of(batch)
        if self._validation is not None and not self._missing.has_any_of_steps:
            self._ask_about(self._validation, batch.tokens.device)
        if not all(digest in found for digest in batch.record_keys):
            raise UserError(
                f"{self._told}: lacks rows that other processes have written; name a folder that all machines share"
            )
        record = self.encoding.decode([found[digest] for digest in batch.record_keys])
        return signal_of(record, batch.for_teacher, self._projection)

    def _ask_about(self, validation: StepPlan, device: torch.device) -> None:
        """The rows that validation alone reads, maybe at the end, until when the teacher is not kept for these."""
        self._validation = None
        self.expect(batch.as_teacher_reads for batch in validation.epoch())
        for batch in validation.epoch():
            batch = batch.as_teacher_reads
            if not self._missing or is_lost(self, [batch]):
                return
            self._records_of(batch.to(device))

    def _records_of(self, batch: Batch) -> dict[bytes, Any]:
        """Of a batch's rows, by digest. While there is one missing, all ranks call it, with their batches."""
        assert self._records is not None
        found = self._records.records(batch.record_keys)
        if not self._missing:
            return found
        asked = self._missing.asked_for([batch])
        lacking = [digest for digest in batch.record_keys if digest not in found]
        of_ranks = on_all_ranks((lacking, [one.record_keys for one in asked]))
        if not all(digest in self._missing for of_rank, _ in of_ranks for digest in of_rank):  # another rank's by now
            self._records.flush()
            found = self._records.records(batch.record_keys)
        for each in itertools.zip_longest(*(digests for _, digests in of_ranks), fillvalue=()):
            now = asked.pop(0) if asked else joined(())
            found = self._recorded_now(now.to(batch.tokens.device), each) | found
        if not self._missing:
            self._finish()
        return found

    def _recorded_now(self, batch: Batch, of_ranks: Sequence[tuple[bytes, ...]]) -> dict[bytes, bytes | memoryview]:
        """Ask about a batch, of which this rank writes what is missing and no rank before it asks about as well.

        Args:
            of_ranks: the rows about which each asks.
        """
        assert self._records is not None
        try:
            records, _ = recorded(self._live, self.encoding, batch, self._manifest.seed)
        finally:
            self._missing.forget(batch)
        by_others = set(itertools.chain(*of_ranks[: rank()]))
        made = dict(zip(batch.record_keys, records, strict=True))
        mine = {digest: made[digest] for digest in made if digest in self._missing and digest not in by_others}
        self._records.add(list(mine), list(mine.values()))
        self._missing.remove(itertools.chain(*of_ranks))
        return {**made}

    def _finish(self) -> None:
        assert self._records is not None
        self._records.flush()
        if is_main_process() and not list_shards(self.folder, self._manifest, self._datasets):
            print(f"{self._told}: {cache.MANIFEST} cannot be written; the next run lists the rows that are there")
        self._let_go()
        print(f"{self._told}: has all {counted(len(self._needed), 'row')} now; the teacher is let go")

    def _let_go(self) -> None:
        self._is_let_go = True
        self._live, self.models, self.may_be_lost = teachers.Teacher(), (), False
        gc.collect()

    def release(self) -> None:
        self._live.release()

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing; what the checkpoint's steps have recorded is on the disk before it is."""
        if self._records is not None:
            self._records.close()
        return {}
