"""Many answers at once of a causal language model of transformers, by its own generation and our choice of tokens."""

import contextlib
import queue
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from distill_tune.generation.endings import Endings
from distill_tune.generation.requests import Completion, Generator, Request
from distill_tune.generation.rows import AnsweredRow
from distill_tune.generation.sampling import Sampling, choose, seeds_of

T = TypeVar("T")


class _Ended(NamedTuple):
    by: BaseException | None


class HuggingFaceDecoder(Generator):
    """Answers with any architecture of transformers: those that torchtune lacks.

    Prompts of about one length are answered together, padded on the left, each handed on as it is done; the next ones
    begin when the longest is.
    Tokens are chosen as :class:`~distill_tune.generation.Decoder` does: of the same logits and stream the same ones.

    Args:
        model: on its device, with or without adapters; it is used as it is, its ``generation_config`` left aside.
        ends: tokens that end an answer.
        tokenizer: needed for ``sampling.stop``.
        max_slots: rows at a time.
        known_tokens: only the first so many of the model's tokens are chosen from; None for all.

    Raises:
        UserError: stop texts without a tokenizer.
    """

    def __init__(
        self,
        model: Any,
        ends: Collection[int],
        sampling: Sampling | None = None,
        *,
        tokenizer: Any = None,
        max_slots: int = 64,
        known_tokens: int | None = None,
    ) -> None:
        self.sampling = sampling or Sampling()
        self._model, self._max_slots, self._known_tokens = model, max_slots, known_tokens
        self._endings = Endings(ends, self.sampling, tokenizer)

    def completions(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Each request's number and completion, as they are done.

        Raises:
            UserError: a prompt that is empty, or does not fit into the model.
        """
        rows = [AnsweredRow.of(*numbered, self.sampling, self._longest) for numbered in enumerate(requests)]
        rows.sort(key=lambda row: len(row.prompt))
        while rows:
            together = [rows.pop() for _ in rows[: self._max_slots]]  # what does not fit into memory is met at once
            open_rows = list(together)

            def done(open_rows: list[AnsweredRow] = open_rows) -> Iterator[tuple[int, Completion]]:
                for row in [row for row in open_rows if row.finish_reason]:
                    open_rows.remove(row)
                    yield row.number, row.completion

            yield from self._as_they_come(together, done)

    def stream(self, request: Request) -> Iterator[int]:
        """The tokens of one request as they come."""
        row = AnsweredRow.of(0, request, self.sampling, self._longest)
        given = 0

        def new() -> Iterator[int]:
            nonlocal given
            start, given = given, len(row.tokens)
            yield from row.tokens[start:]

        yield from self._as_they_come([row], new)

    def _as_they_come(self, rows: Sequence[AnsweredRow], new: Callable[[], Iterator[T]]) -> Iterator[T]:
        """What there is after each token, while the rows are answered by a thread: transformers gives nothing before.

        Args:
            new: what there is that it has not given before.
        """
        coming: queue.SimpleQueue[T | _Ended] = queue.SimpleQueue()
        abandoned = threading.Event()

        def give() -> bool:
            for one in new():
                coming.put(one)
            return abandoned.is_set()

        def answer() -> None:
            try:
                self._answer(rows, give)
                coming.put(_Ended(None))
            except BaseException as error:  # whoever waits raises it
                coming.put(_Ended(error))

        thread = threading.Thread(target=answer, daemon=True, name="answer of transformers")
        thread.start()
        try:
            while not isinstance(one := coming.get(), _Ended):
                yield one
            if one.by is not None:
                raise one.by
        finally:
            abandoned.set()
            thread.join()

    @property
    def _longest(self) -> int | None:
        """Tokens that the model reads, where it says so."""
        config = self._model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)

    def _answer(self, rows: Sequence[AnsweredRow], after_each: Callable[[], bool]) -> None:
        """
        Args:
            after_each: called after each token; True ends it.
        """
        ended = False

        def after() -> bool:
            nonlocal ended
            ended = after_each()
            return ended

        while not ended and (going_on := [row for row in rows if not row.finish_reason]):
            self._go_on(going_on, after)

    @torch.no_grad()
    def _go_on(self, rows: Sequence[AnsweredRow], after_each: Callable[[], bool]) -> None:
        """Until all are done, or the first has no place left: it would go on, unheard, past the model's last position.

        Args:
            rows: with as many tokens each.
        """
        read = [(*row.prompt, *row.tokens) for row in rows]
        device, longest = self._model.device, max(map(len, read))
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(tokens)
        for place, one in enumerate(read):
            tokens[place, longest - len(one) :] = torch.tensor(one)
            mask[place, longest - len(one) :] = 1
        count = max(row.limit - len(row.tokens) for row in rows)
        if self._longest is not None:
            count = min(count, self._longest - longest)
        choice = _Choice(rows, self.sampling, self._endings, self._known_tokens)
        with _as_it_is(self._model):
            self._model.generate(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                generation_config=GenerationConfig(do_sample=False, max_new_tokens=count, use_cache=True),
                logits_processor=[choice],
                stopping_criteria=[_Done(rows, after_each)],
            )


class _Choice(LogitsProcessor):
    """Chooses each row's next token, writes it down, and leaves it alone to be taken."""

    def __init__(
        self, rows: Sequence[AnsweredRow], sampling: Sampling, endings: Endings, known_tokens: int | None = None
    ) -> None:
        self._rows, self._sampling, self._endings = rows, sampling, endings
        self._known = slice(0, known_tokens)
        self._answered = len(rows[0].tokens)
        self._seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input_ids: ``[n, s]``, not looked at: padding is among them.
            scores: logits, ``[n, v]``.
        """
        if self._seen is None and self._sampling.repetition_penalty != 1:
            self._seen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
            for place, row in enumerate(self._rows):
                self._seen[place, torch.tensor((*row.prompt, *row.tokens), device=scores.device)] = True
        streams = torch.tensor([row.stream for row in self._rows], device=scores.device)
        seeds = seeds_of(streams, torch.full_like(streams, self._answered))
        seen = None if self._seen is None else self._seen[:, self._known]
        tokens, log_probs = choose(scores[:, self._known].float(), self._sampling, seeds, seen)
        self._answered += 1
        if self._seen is not None:
            self._seen.scatter_(1, tokens[:, None], True)
        for row, token, log_prob in zip(self._rows, tokens.tolist(), log_probs.tolist(), strict=True):
            if not row.finish_reason:
                row.add(token, log_prob, self._endings)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class _Done(StoppingCriteria):
    """Which rows are done; those that are go on, unheard, until all are."""

    def __init__(self, rows: Sequence[AnsweredRow], after_each: Callable[[], bool]) -> None:
        self._rows, self._after_each = rows, after_each

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **others: Any) -> torch.Tensor:
        ended = self._after_each()
        return torch.tensor([ended or bool(row.finish_reason) for row in self._rows], device=input_ids.device)


@contextlib.contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """In eval mode, without what its generation_config would change of logits, and as it was afterwards."""
    was_training, config = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = config
        model.train(was_training)
