"""A teacher on another machine: `distill-tune serve`, vLLM or SGLang, asked for records ahead of the step."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.cache.encoding import AnyEncoding, encoding_of
from distill_tune.data.batch import Batch
from distill_tune.errors import UserError, one_line
from distill_tune.losses import (
    Divergence,
    HiddenStates,
    LinearProjection,
    SparseSignal,
    TokenLikelihoods,
    TokenWeight,
    TopK,
    unserved,
)
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.serve.connection import Server, ServerError
from distill_tune.serve.engine import Engine
from distill_tune.serve.find import ENGINES, NoServer, find_engine
from distill_tune.serve.own import DistillTune
from distill_tune.serve.probe import (
    Tokens,
    answered_by,
    describe,
    require_known_answer,
    require_others,
    require_temperature,
)
from distill_tune.serve.requests import AllLost, Answer, Answered, Requests
from distill_tune.teachers.recorded import signal_of
from distill_tune.teachers.teacher import Shard, Teacher

from torchtune.modules import TransformerDecoder

TOKEN = "DISTILL_TUNE_SERVE_TOKEN"
_KEY = "teacher_model"
_LISTED = 20  # log-probabilities of a known sentence: as many as vLLM gives that nobody has told to give more
_KINDS = ("sampled", "top_k", "hidden", "likelihood")
_OF_ALL_TOKENS = ("hidden", "likelihood")


class _Asked(NamedTuple):
    """The rows of a request, and its answer."""

    digests: tuple[bytes, ...]
    answer: Answer


class _Upcoming(Iterator[Batch]):
    """An iterator, and what comes ``first`` in it, which is taken from what it is made of when it is asked for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._rest = batches
        self.taken: Batch | None = None

    @property
    def first(self) -> Batch | None:
        """None at its end."""
        if self.taken is None:
            self.taken = next(self._rest, None)
        return self.taken

    def __next__(self) -> Batch:
        first, self.taken = self.first, None
        if first is None:
            raise StopIteration
        return first


class Served(Teacher):
    """Its word on a row is a record, as a cache has it, of a server or of several that serve the same teacher.

    Before any step each is asked which it is and whether its tokens are those of the rows. While a step is taken, the
    answers for the next are under way. A server that fails is asked again, then left out; when none is left the run
    ends with a checkpoint.

    Args:
        url: ``http://machine:8000``, or a list.
        kind: ``top_k``: the k likeliest tokens and the mass of the rest, of any engine. ``likelihood``: how likely the
            rows' own tokens are, of any engine. ``sampled``, ``hidden``: of `distill-tune serve`, see docs/served.md.
        k: tokens, of kind top_k.
        k_of_student: of kind top_k, where the student writes answers (``rollouts``): so many tokens of each position as
            well, those that the student holds likeliest. `distill-tune serve` and vLLM tell of them.
        draws: of kind sampled.
        seed: of the draws, beside which they depend on the row alone.
        engine: ``distill-tune``, ``vllm``, ``sglang``, or ``auto``.
        model: which of a server's models, where it serves several.
        token: that the servers ask for; default the environment variable DISTILL_TUNE_SERVE_TOKEN.
        timeout: seconds without a byte after which a request is asked again, and for which a server may be busy.
        concurrency: requests that each server has at a time.
        retries: of a request at one server, after waits of 0.25 seconds, twice that, and so on, 30 at most.

    Attributes:
        settings: of its kind: ``k`` or ``draws``.
        encoding: of its records; known after :meth:`load`.

    Raises:
        UserError: a setting is out of its range.
    """

    dtype: torch.dtype = torch.float32
    may_be_lost = True

    def __init__(
        self,
        url: str | list[str],
        kind: str = "top_k",
        k: int = 50,
        draws: int = 50,
        seed: int = 0,
        engine: str = "auto",
        model: str | None = None,
        token: str | None = None,
        timeout: float = 300,
        concurrency: int = 4,
        retries: int = 8,
        k_of_student: int = 0,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise UserError("url=[]: name a server, http://machine:port")
        for name, value, values in (("kind", kind, _KINDS), ("engine", engine, ("auto", *ENGINES))):
            if value not in values:
                raise UserError(f"{name}={value}: must be one of {', '.join(values)}")
        for name, number in (("k", k), ("draws", draws), ("concurrency", concurrency)):
            if number < 1:
                raise UserError(f"{name}={number}: must be at least 1")
        if k_of_student < 0 or (k_of_student and kind != "top_k"):
            raise UserError(f"k_of_student={k_of_student}: must be at least 0, and is of kind=top_k alone")
        if timeout <= 0 or retries < 0 or seed < 0:
            raise UserError(f"timeout={timeout}, retries={retries}, seed={seed}: must be above 0, and at least 0")
        self.kind, self._seed, self.tokens_of_student = kind, seed, k_of_student
        self.record_kind = "" if kind == "hidden" else kind
        self.settings = {"draws": draws} if kind == "sampled" else {"k": k} if kind == "top_k" else {}
        self._engine, self._model = engine, model
        token = token or os.environ.get(TOKEN) or None
        self._servers = [Server(one, token, timeout) for one in urls]
        self._concurrency, self._retries, self._timeout = concurrency, retries, timeout
        self._temperature = 1.0
        self._upcoming = _Upcoming(iter(()))
        self._coming: list[_Asked] = []
        self._projection: LinearProjection | None = None

    @property
    def vocab_size(self) -> int:
        """Of its distributions."""
        return self._vocab_size

    # ---- Before any step

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        try:
            self._engines = self._found_engines()
            self._require_kind()
            about = self._engines[0].about
            self._tokens = Tokens(tokenizer, checkpoint.folder)
            self.other_tokens: dict[int, str] = {}
            for engine in self._engines:
                with answered_by(engine):
                    self.other_tokens |= self._tokens.differing(engine)
            of_student = models.output_head(student).vocab_size
            its = about.vocab_size or (self._tokens.size if self.kind == TokenLikelihoods.kind else of_student)
            # Of these all are the teacher's own; else what is left out of a longer vocabulary is padding.
            self._vocab_size = its if self.kind in _OF_ALL_TOKENS else min(of_student, its)
            self.width = about.width if self.kind == "hidden" else 0
            self.encoding = self._made_encoding()
            known = require_known_answer(self._engines, self._tokens, self._vocab_size, self.settings.get("k", _LISTED))
            if self.tokens_of_student:
                self._require_others()
            if self._temperature != 1:
                require_temperature(self._engines, self._tokens, self._vocab_size, self._temperature)
        except UserError as error:
            raise UserError(f"{_KEY}.{error}" if str(error).startswith("url=") else f"{_KEY}: {error}") from error
        told = [engine.about.content or f"{engine.about.engine} {engine.about.model}" for engine in self._engines]
        if len(set(told)) > 1:
            raise UserError(f"{_KEY}.url: the servers do not serve the same teacher ({', '.join(told)})")
        self.content = hashlib.sha256(told[0].encode()).hexdigest()
        print(describe(self._engines, self.kind, self.settings.get("k"), known))
        return its

    def _require_others(self) -> None:
        """
        Raises:
            UserError: a server does not tell of tokens that are named to it, or not at this temperature.
        """
        together = self.settings["k"] + self.tokens_of_student
        if together > self._vocab_size:
            raise UserError(f"k_of_student={self.tokens_of_student}: with k, more than all {self._vocab_size} tokens")
        for engine in self._engines:
            told = f"url={engine.server.url}: k_of_student={self.tokens_of_student}: {engine.about.engine} "
            if engine.about.no_others:
                raise UserError(f"{told}cannot serve it: {engine.about.no_others}; take vLLM or distill-tune serve")
            if self._temperature != 1 and not isinstance(engine, DistillTune):
                raise UserError(f"{told}serves it at temperature=1 alone, not {self._temperature:g}")
        require_others(self._engines, self._tokens, self._vocab_size, self.tokens_of_student)

    def _made_encoding(self) -> AnyEncoding:
        """
        Raises:
            UserError: a setting is out of its range.
        """
        own = {"width": self.width} if self.kind == "hidden" else {"temperature": self._temperature} | self.settings
        try:
            return encoding_of(self.kind, {"vocab_size": self._vocab_size} | own)
        except ValueError as error:
            raise UserError(one_line(error)) from error

    def _found_engines(self) -> list[Engine]:
        """Those of the servers that answer; the others are left out, which is told.

        Raises:
            UserError: none answers; one is no server of a teacher.
        """
        found: list[Engine] = []
        silent: list[tuple[Server, NoServer]] = []
        for server in self._servers:
            try:
                found.append(find_engine(server, self._engine, self._model))
            except NoServer as error:
                silent.append((server, error))
        if not found:
            raise silent[0][1]
        for server, reason in silent:
            print(
                f"teacher at {server.url}: left out ({reason.__cause__}); {len(found)} of {len(self._servers)} answer"
            )
        return found

    def _require_kind(self) -> None:
        for engine in self._engines:
            about, told = engine.about, f"url={engine.server.url}"
            if self.kind not in about.kinds:
                raise UserError(
                    f"{told}: {about.engine}, serving {about.model}, gives {', '.join(about.kinds)}, "
                    f"not kind={self.kind}"
                )
            if about.most_log_probs is not None and self.settings.get("k", 0) > about.most_log_probs:
                raise UserError(
                    f"{told}: gives {about.most_log_probs} log-probabilities at most: k={self.settings['k']}"
                )

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        about = self._engines[0].about
        for engine in self._engines:
            most, size = engine.about.most_tokens, engine.about.vocab_size
            if most is not None and longest > most:
                raise UserError(
                    f"dataset: its longest sequence has {longest} tokens, {_KEY} at {engine.server.url} reads {most} "
                    f"at most; cut rows there with tokenizer.max_seq_len={most}"
                )
            if size is not None:
                models.require_tokens(_KEY, size, int(used_tokens[-1]))
            try:
                self.other_tokens |= self._tokens.differing_by_name(engine, used_tokens)
            except ServerError as error:
                raise UserError(f"{_KEY}.url={engine.server.url}: {error}") from error
            except UserError as error:
                raise UserError(f"{_KEY}.{error}") from error
        models.require_same_tokens(self.other_tokens, used_tokens, f"{about.model} at {self._engines[0].server.url}")

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        if self.kind == "hidden":
            return
        reason = unserved(
            self.kind,
            divergence,
            token_weight,
            temperature=temperature,
            recorded_temperature=temperature or 1.0,
            k=self.settings.get("k"),
            combination=combination,
        )
        if reason or temperature is None:
            raise UserError(f"{_KEY}.kind={self.kind}: {reason}")
        if self.tokens_of_student and isinstance(divergence, TopK):
            raise UserError(
                f"{_KEY}.k_of_student={self.tokens_of_student}: TopK looks at the teacher's likeliest alone; name what "
                "it measures, such as distill_tune.losses.ReverseKL, as kd_loss itself"
            )
        self._temperature = temperature

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        self._requests = Requests(
            self._engines, concurrency=self._concurrency, retries=self._retries, patience=self._timeout
        )
        if self.kind != "hidden":
            return
        first: Engine = self._engines[0]
        assert isinstance(first, DistillTune)
        try:
            self._projection = first.output_layer(device)
        except ServerError as error:
            raise UserError(f"{_KEY}.url={first.server.url}: {error}") from error

    # ---- Signals

    def expect(self, batches: Iterator[Batch]) -> None:
        if self._upcoming.taken is not None:  # which whoever expects it may need before the new ones
            self._coming.append(self._ask(next(self._upcoming)))
        self._upcoming = _Upcoming(itertools.chain((batch.for_teacher for batch in batches), self._upcoming))
        self._ask_ahead()

    def lost(self, batches: Sequence[Batch]) -> str | None:
        asked = [self._asked_for(batch.for_teacher) for batch in batches]
        self._coming[:0] = asked
        self._ask_ahead()
        try:
            for one in asked:
                one.answer.result()
        except AllLost as error:
            return str(error)
        return None

    def __call__(self, batch: Batch) -> SparseSignal | TokenLikelihoods | HiddenStates:
        """
        Raises:
            UserError: no server answers any more, which :meth:`lost` would have told.
        """
        return signal_of(self._answered(batch).record, batch.for_teacher, self._projection)

    def records(self, batch: Batch) -> list[bytes]:
        """The record of each row, in the bytes of ``encoding``.

        Raises:
            UserError: as a call.
        """
        return self._answered(batch).rows

    def _answered(self, batch: Batch) -> Answered:
        asked = self._asked_for(batch.for_teacher)
        self._ask_ahead()
        try:
            return asked.answer.result()
        except AllLost as error:
            raise UserError(f"{_KEY}: no server answers any more: {error}") from error

    def _asked_for(self, batch: Batch) -> _Asked:
        """A batch's answer, taken from those that come; where it is not among them, it is asked for now.

        A batch is asked for as it stands: in floating point what a row gets depends a little on its neighbours. Rows
        that come in another batch than was expected, as after memory ran out, are asked for again.
        """
        for number, one in enumerate(self._coming):
            if one.digests == batch.digests:
                return self._coming.pop(number)
        if self._upcoming.first is not None and self._upcoming.first.digests == batch.digests:
            return self._ask(next(self._upcoming))
        rows = set(batch.digests)
        self._coming = [one for one in self._coming if rows.isdisjoint(one.digests)]
        return self._ask(batch)

    def _ask_ahead(self) -> None:
        """As many requests as the servers take at a time, beside as many answers that wait for their step."""
        at_a_time = self._requests.at_a_time
        while sum(not one.answer.done() for one in self._coming) < at_a_time and len(self._coming) < 2 * at_a_time:
            if self._upcoming.first is None:
                return
            self._coming.append(self._ask(next(self._upcoming)))

    def _ask(self, batch: Batch) -> _Asked:
        if batch.likeliest is not None:
            likeliest = batch.likeliest[:, : self.tokens_of_student] if self.tokens_of_student else None
            batch = dataclasses.replace(batch, likeliest=likeliest)
        if batch.digests:
            return _Asked(batch.digests, self._requests.ask(batch, self.encoding, self._seed))
        nothing: Answer = concurrent.futures.Future()
        nothing.set_result(Answered([], self.encoding.decode([])))
        return _Asked((), nothing)
