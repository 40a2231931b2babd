"""Many answers at once: schedule, run, take."""

import collections
import dataclasses
import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.generation.endings import Endings
from distill_tune.generation.graphs import StepGraphs
from distill_tune.generation.ready import ReadyModel, ready_to_generate
from distill_tune.generation.requests import Completion, Generator, Request
from distill_tune.generation.rows import AnsweredRow
from distill_tune.generation.sampling import Sampling, choose, seeds_of
from distill_tune.models.cached_rows import FilledRows, GrownRows, KeyValueCache

from torchtune.modules import TransformerDecoder

_PREFILL_TOKENS = 4096  # of the prompts that are read together
_CPU_CACHE_BYTES = 2**30
_STEPS_BETWEEN_LOOKS = 8  # at the tokens, for which the CPU waits for the device


@dataclasses.dataclass
class Spent:
    """What a decoder has done so far: tokens of prompts that it read and of answers that it chose, and the seconds.

    The first token of an answer is chosen as its prompt is read.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0


class Decoder(Generator):
    """Answers with a model of torchtune's modules, many prompts at once.

    Each row has a slot of the key-value cache; as a row ends, the next prompt takes its place. An answer depends on its
    prompt, its stream and the weights, not on what it shares the batch with, up to the rounding of the products.

    Args:
        model: with its output head in place or taken, on its device; sharded, every rank calls at the same time.
        ends: tokens that end an answer.
        tokenizer: of torchtune's or ours; needed for ``sampling.stop``.
        cache_bytes: the key-value cache takes no more; default 1 GiB on a CPU, half of what is free elsewhere.
        max_slots: rows at a time.
        known_tokens: only the first so many of the model's tokens are chosen from; None for all.

    Attributes:
        spent: so far, by phase.

    Raises:
        UserError: stop texts without a tokenizer.
    """

    def __init__(
        self,
        model: TransformerDecoder,
        ends: Collection[int],
        sampling: Sampling | None = None,
        *,
        tokenizer: Any = None,
        cache_bytes: int | None = None,
        max_slots: int = 64,
        known_tokens: int | None = None,
    ) -> None:
        self.sampling, self.spent = sampling or Sampling(), Spent()
        self._model, self._endings = model, Endings(ends, self.sampling, tokenizer)
        self._cache_bytes, self._max_slots, self._known_tokens = cache_bytes, max_slots, known_tokens
        self._cache: KeyValueCache | None = None
        self._rows_asked_for = 0  # when the cache was made; it may have had to have fewer slots

    def completions(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Each request's number and completion, as they are done.

        Raises:
            UserError: a prompt that is empty, or does not fit into the model or the cache.
        """
        with ready_to_generate(self._model, rows=len(requests)) as model:
            batch = self._batch(requests, model) if requests else None  # of a sharded model this rank may have none
            while batch and not batch.is_done:
                for row in batch.step():
                    yield row.number, row.completion

    def stream(self, request: Request) -> Iterator[int]:
        """The tokens of one request as they come."""
        with ready_to_generate(self._model, rows=1) as model:
            batch, given = self._batch([request], model), 0
            (row,) = batch.waiting
            while not batch.is_done:
                batch.step()
                yield from row.tokens[given:]
                given = len(row.tokens)

    def _batch(self, requests: Sequence[Request], model: ReadyModel) -> "_Batch":
        longest = self._model.max_seq_len
        rows = [AnsweredRow.of(*numbered, self.sampling, longest) for numbered in enumerate(requests)]
        # The longest first, so that rows of a batch have about one length; equal prompts beside each other.
        rows.sort(key=lambda row: (len(row.prompt), row.prompt), reverse=True)
        cache = self._cache_for(rows, model)
        return _Batch(rows, model, cache, self._endings, self.sampling, self.spent, self._known_tokens)

    def _cache_for(self, rows: Sequence[AnsweredRow], model: ReadyModel) -> KeyValueCache:
        """The cache of the call before, where it is large enough."""
        longest = max(rows, key=lambda row: len(row.prompt) + row.limit)
        length = len(longest.prompt) + longest.limit
        slots = min(self._max_slots, len(rows))
        kept = self._cache
        if kept and slots <= self._rows_asked_for and kept.holds(length, model.device, model.dtype):
            return kept
        self._cache = kept = None  # freed before the new one
        self._rows_asked_for = slots
        of_slot = KeyValueCache.bytes_of_slot(self._model, length, model.dtype)
        budget = self._cache_bytes or _free_bytes(model.device)
        if of_slot > budget:
            raise UserError(
                f"prompt {longest.number + 1} has {len(longest.prompt)} tokens and up to {longest.limit} to come: its "
                f"keys and values take {of_slot / 2**30:.2f} GiB, the cache may take {budget / 2**30:.2f} GiB; raise "
                "cache_bytes, or lower max_new_tokens"
            )
        self._cache = KeyValueCache(self._model, min(slots, budget // of_slot), length, model.device, model.dtype)
        return self._cache


class _Batch:
    """Rows that wait, and those that are being answered, which have the first slots of the cache, without gaps."""

    def __init__(
        self,
        rows: Sequence[AnsweredRow],
        model: ReadyModel,
        cache: KeyValueCache,
        endings: Endings,
        sampling: Sampling,
        spent: Spent,
        known_tokens: int | None,
    ) -> None:
        self.waiting = collections.deque(rows)
        self._running: list[AnsweredRow] = []
        self._spent, self._known = spent, slice(0, known_tokens)
        self._model, self._endings, self._sampling = model, endings, sampling
        self._cache = cache
        # Of each slot: the token before the next one, and that one's position in row and answer.
        self._slots = torch.zeros(3, cache.slots, dtype=torch.int64, device=model.device)
        self._last, self._positions, self._answered = self._slots
        # And what each token that may come is drawn from.
        longest = max(row.limit for row in rows) + _steps_between_looks(model.device)
        self._seeds = torch.zeros(cache.slots, longest, dtype=torch.int64, device=model.device)
        self._seen: torch.Tensor | None = None  # the tokens of each slot's row, with a repetition penalty
        self._one_more: Callable[[int, int], tuple[torch.Tensor, ...]] = self._step
        if _is_captured(model.device) and sampling.repetition_penalty == 1:
            self._one_more = StepGraphs(self._step, [self._slots], cache.slots, cache.length)

    @property
    def is_done(self) -> bool:
        return not self.waiting and not self._running

    def step(self) -> list[AnsweredRow]:
        """Fill the free slots and choose the next token of each row, or some; the rows that are done by it."""
        free = self._cache.slots - len(self._running)
        taken = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        with self._model.without_gradients():
            for rows in _read_together(taken):
                self._begin(rows)
            done = self._take_finished()
            if self._running:
                self._go_on(_steps_between_looks(self._model.device))
                done += self._take_finished()
        return done

    def _begin(self, rows: Sequence[AnsweredRow]) -> None:
        """Read prompts, each once for all rows that have it, and choose their first tokens."""
        started = time.perf_counter()
        first = len(self._running)
        self._running += rows
        groups = [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.prompt)]
        ends = itertools.accumulate(map(len, groups), initial=first)
        slots = [range(start, start + len(group)) for start, group in zip(ends, groups, strict=False)]
        lengths = [len(group[0].prompt) for group in groups]
        prompts = FilledRows(lengths, slots, self._cache)
        tokens = self._tensor([token for group in groups for token in group[0].prompt])[None]
        hidden = self._model.hidden_states(tokens, prompts.positions, prompts)[0]
        last = self._tensor([end - 1 for end in itertools.accumulate(lengths)])
        logits = self._model.logits(hidden[last])  # [prompts, v]
        logits = logits.repeat_interleave(self._tensor([len(group) for group in groups]), dim=0)
        filled = slice(first, len(self._running))
        self._slots[:, filled] = self._tensor([[0, len(row.prompt) - 1, 0] for row in rows]).t()
        streams = self._tensor([row.stream for row in rows])[:, None]
        self._seeds[filled] = seeds_of(streams, torch.arange(self._seeds.shape[1], device=self._model.device))
        if self._sampling.repetition_penalty != 1:
            self._remember(filled, rows, logits.shape[-1])
        self._append(*self._choose(logits, filled))
        self._spent.prompt_tokens += sum(lengths)
        self._spent.prompt_seconds += time.perf_counter() - started

    def _go_on(self, steps: int) -> None:
        """So many tokens more for each row; those behind an end are not taken."""
        started = time.perf_counter()
        before = sum(len(row.tokens) for row in self._running)
        rows = len(self._running)
        longest = max(len(row.prompt) + len(row.tokens) for row in self._running)
        self._slots[:, rows:] = 0  # a graph may take free slots along
        chosen = [self._one_more(rows, longest + step) for step in range(steps)]
        self._append(*(torch.stack(part) for part in zip(*chosen, strict=True)))
        self._spent.answer_tokens += sum(len(row.tokens) for row in self._running) - before
        self._spent.answer_seconds += time.perf_counter() - started

    def _step(self, rows: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of the first slots and its log-probability, ``[rows]`` each."""
        now = slice(0, rows)
        # Behind an end, of which nothing is taken, a row may go past its last position.
        positions = self._positions[now].clamp(max=self._cache.length - 1)
        grown = GrownRows(positions, longest, self._cache)
        hidden = self._model.hidden_states(self._last[now, None], positions[:, None], grown)[:, 0]
        return self._choose(self._model.logits(hidden), now)

    def _choose(self, logits: torch.Tensor, slots: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """The next token of each of the slots and its log-probability, ``[n]`` each."""
        seen = None if self._seen is None else self._seen[slots]
        seeds = self._seeds[slots].gather(-1, self._answered[slots, None])[:, 0]
        of_known = None if seen is None else seen[:, self._known]
        tokens, log_probs = choose(logits[:, self._known], self._sampling, seeds, of_known)
        if seen is not None:
            seen.scatter_(-1, tokens[:, None], True)
        self._last[slots] = tokens
        self._slots[1:, slots] += 1
        return tokens, log_probs

    def _append(self, tokens: torch.Tensor, log_probs: torch.Tensor) -> None:
        """Give the last rows their new tokens, ``[steps, n]`` or ``[n]``, up to their ends."""
        n = tokens.shape[-1]
        columns = zip(*(part.view(-1, n).t().tolist() for part in (tokens, log_probs)), strict=True)
        for row, new in zip(self._running[-n:], columns, strict=True):
            for token, log_prob in zip(*new, strict=True):
                row.add(token, log_prob, self._endings)
                if row.finish_reason:
                    break

    def _take_finished(self) -> list[AnsweredRow]:
        """Rows that are done leave their slots, and the last ones move there."""
        done = [row for row in self._running if row.finish_reason]
        for slot in reversed(range(len(self._running))):
            if self._running[slot].finish_reason:
                last = len(self._running) - 1
                if slot != last:
                    self._move(last, slot)
                self._running.pop()
        return done

    def _move(self, source: int, target: int) -> None:
        self._running[target] = self._running[source]
        self._cache.move(source, target)
        self._slots[:, target] = self._slots[:, source]
        self._seeds[target] = self._seeds[source]
        if self._seen is not None:
            self._seen[target] = self._seen[source]

    def _remember(self, slots: slice, rows: Sequence[AnsweredRow], vocab_size: int) -> None:
        if self._seen is None:
            self._seen = torch.zeros(self._cache.slots, vocab_size, dtype=torch.bool, device=self._model.device)
        self._seen[slots] = False
        for slot, row in zip(range(slots.start, slots.stop), rows, strict=True):
            self._seen[slot, self._tensor(row.prompt)] = True

    def _tensor(self, numbers: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(numbers, dtype=torch.int64).to(self._model.device, non_blocking=True)


def _read_together(rows: Sequence[AnsweredRow]) -> Iterator[list[AnsweredRow]]:
    """Rows whose prompts are read in one forward pass; a long one by itself."""
    part: list[AnsweredRow] = []
    tokens = 0
    for row in rows:
        new = 0 if part and part[-1].prompt == row.prompt else len(row.prompt)
        if part and tokens + new > _PREFILL_TOKENS:
            yield part
            part, tokens = [], 0
            new = len(row.prompt)
        part.append(row)
        tokens += new
    if part:
        yield part


def _steps_between_looks(device: torch.device) -> int:
    return 1 if device.type == "cpu" else _STEPS_BETWEEN_LOOKS


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda"


def _free_bytes(device: torch.device) -> int:
    """What a cache may take where nothing is said."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return _CPU_CACHE_BYTES
