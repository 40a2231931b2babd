"""Answers of a model on another machine, served by vLLM: its completions over token ids."""

import concurrent.futures
import functools
import json
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy

from distill_tune.errors import UserError
from distill_tune.generation.endings import Endings
from distill_tune.generation.requests import Completion, Generator, Request
from distill_tune.generation.rows import room_for
from distill_tune.generation.sampling import Sampling
from distill_tune.serve import connection, vllm
from distill_tune.serve.connection import NoAnswer, Refused
from distill_tune.serve.engine import asked_for_json, read_from
from distill_tune.serve.find import NoServer, find_engine
from distill_tune.serve.probe import Tokens, answered_by
from distill_tune.serve.requests import AllLost, Requests, wait_before
from distill_tune.serve.vllm import VLLM

TOKEN = "DISTILL_TUNE_SERVE_TOKEN"
_PATH = "/v1/completions"
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_NOT_THERE = 404
_SEEDS = 2**31
_SHOWN = 3
_SAME = 0.05  # nats: what bf16 and other kernels make of a likely token
_NEUTRAL = Sampling(max_new_tokens=1)


class Server:
    """A model that answers over HTTP, one server or several that serve the same.

    Args:
        url: ``http://machine:8000``, or a list.
        model: which of a server's models, where it serves several.
        token: that the servers ask for; default the environment variable DISTILL_TUNE_SERVE_TOKEN.
        timeout: seconds without a byte after which a request is asked again, and for which a server may be busy.
        concurrency: answers that each server writes at a time.
        retries: of a request at one server, after waits of 0.25 seconds, twice that, and so on, 30 at most.

    Raises:
        UserError: a setting is out of its range.
    """

    def __init__(
        self,
        url: str | list[str],
        model: str | None = None,
        token: str | None = None,
        timeout: float = 300,
        concurrency: int = 64,
        retries: int = 8,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise UserError("url=[]: name a server, http://machine:port")
        if concurrency < 1:
            raise UserError(f"concurrency={concurrency}: must be at least 1")
        if timeout <= 0 or retries < 0:
            raise UserError(f"timeout={timeout}, retries={retries}: must be above 0, and at least 0")
        self._model = model
        token = token or os.environ.get(TOKEN) or None
        self._servers = [connection.Server(one, token, timeout) for one in urls]
        self.concurrency, self.retries, self.timeout = concurrency, retries, timeout

    def engines(self) -> list[VLLM]:
        """Those of the servers that answer; the others are left out, which is told.

        Raises:
            UserError: none answers; one is of another kind, or does not serve the model.
        """
        found: list[VLLM] = []
        silent: list[tuple[connection.Server, NoServer]] = []
        for server in self._servers:
            try:
                engine = find_engine(server, vllm.NAME, self._model)
                assert isinstance(engine, VLLM)
                found.append(engine)
            except NoServer as error:
                silent.append((server, error))
        if not found:
            raise silent[0][1]
        for server, reason in silent:
            told = f"left out ({reason.__cause__}); {len(found)} of {len(self._servers)} answer"
            print(f"generator at {server.url}: {told}")
        return found


class ServerDecoder(Generator):
    """Answers of a :class:`Server`; each request is one of HTTP, many under way at a time.

    A server draws with a random stream of its own, which the request's stream seeds: other tokens than a
    :class:`~distill_tune.generation.Decoder` would, and the same again as far as the server's arithmetic is. Before the
    first answer it is proven that its tokens are the tokenizer's and its log-probabilities the model's own.

    Args:
        ends: tokens that end an answer, in place of those that the server knows.
        tokenizer: of transformers, or ours, to prove the tokens by; needed for ``sampling.stop``.

    Attributes:
        weight_version: of which answers must come; None where weights are not sent there.

    Raises:
        UserError: stop texts without a tokenizer.
    """

    def __init__(
        self, server: Server, ends: Collection[int], sampling: Sampling | None = None, *, tokenizer: Any = None
    ) -> None:
        self.sampling = sampling or Sampling()
        self._server, self._tokenizer = server, tokenizer
        self._endings = Endings(ends, self.sampling, tokenizer)
        self._engines: list[VLLM] = []
        self._requests: Requests | None = None
        self._longest: int | None = None  # tokens of a prompt and its answer
        self.weight_version: str | None = None

    def completions(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Each request's number and completion, as they are done.

        Raises:
            UserError: no server answers, or one has another model or tokenizer; a prompt that is empty, or too long.
        """
        if not requests:
            return
        for number, request in enumerate(requests):
            room_for(number, request, self.sampling, None)  # an empty prompt is told before a server is asked
        servers = self._requests or self._open(requests)
        reader = "the server's model"
        limits = [room_for(*numbered, self.sampling, self._longest, reader) for numbered in enumerate(requests)]
        numbers: dict[concurrent.futures.Future[Completion], int] = {}
        for number, (request, limit) in enumerate(zip(requests, limits, strict=True)):
            numbers[servers.submit(functools.partial(self._asked, request, limit))] = number
        try:
            for answer in concurrent.futures.as_completed(numbers):
                yield numbers.pop(answer), answer.result()  # which is kept nowhere else
        except AllLost as error:
            raise UserError(f"no server answers any more: {error}") from error
        finally:
            for answer in numbers:
                answer.cancel()

    def load_adapter(self, name: str, folder: Path) -> None:
        """Have every server read a LoRA adapter (PEFT); :meth:`use` has it answer.

        Args:
            name: of its own: what a server has kept of prompts belongs to it.
            folder: which the servers see under this path, too.

        Raises:
            UserError: one does not take it.
        """
        # In place, should it be asked again because the answer was lost.
        body = {"lora_name": name, "lora_path": str(folder.resolve()), "load_inplace": True}
        for engine in self.engines:
            if not self._is_known(engine, _LOAD, body):
                raise UserError(
                    f"url={engine.server.url}: loads no adapters; start vLLM with --enable-lora and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
                )

    def unload_adapter(self, name: str) -> None:
        """Have every server forget an adapter, if it knows it.

        Raises:
            UserError: one does not.
        """
        for engine in self.engines:
            self._is_known(engine, _UNLOAD, {"lora_name": name})

    def use(self, name: str) -> None:
        """Have answers come of the model, or the adapter, of this name."""
        for engine in self.engines:
            engine.about = engine.about._replace(model=name)

    def _is_known(self, engine: VLLM, path: str, body: dict[str, Any]) -> bool:
        """Whether a server does what it is asked, and not that there is no such thing.

        Raises:
            UserError: it refuses, or has no answer however often it is asked.
        """
        tries = 0
        while True:
            try:
                engine.server.ask(path, json.dumps(body).encode(), type="application/json")
                return True
            except Refused as error:
                if error.status == _NOT_THERE:
                    return False
                raise UserError(f"url={engine.server.url}: {path}: {error}") from error
            except NoAnswer as error:
                tries += 1
                if tries > self._server.retries:
                    raise UserError(f"url={engine.server.url}: {path}: {error}, {tries} times") from error
                time.sleep(wait_before(tries))

    @property
    def engines(self) -> list[VLLM]:
        """The servers that are asked, without those that have been left out.

        Raises:
            UserError: as :meth:`Server.engines`.
        """
        self._engines = self._engines or self._server.engines()
        return self._requests.answering if self._requests else self._engines

    def _open(self, requests: Sequence[Request]) -> Requests:
        engines = self.engines
        used = numpy.unique(numpy.concatenate([numpy.asarray(request.prompt) for request in requests]))
        for engine in engines:
            with answered_by(engine):
                self._require_same_tokens(engine, used)
                self._require_own_log_probs(engine, requests[0])
        self._longest = min((one.about.most_tokens + 1 for one in engines if one.about.most_tokens), default=None)
        self._requests = Requests(
            engines,
            concurrency=self._server.concurrency,
            retries=self._server.retries,
            patience=self._server.timeout,
            what="generator",
        )
        return self._requests

    def _require_same_tokens(self, engine: VLLM, used: numpy.ndarray) -> None:
        if not hasattr(self._tokenizer, "transformers_tokenizer"):
            return
        if differing := Tokens(self._tokenizer, Path()).differing_by_name(engine, used):
            shown = ", ".join(f"{token} ({told})" for token, told in sorted(differing.items())[:_SHOWN])
            raise UserError(
                f"url={engine.server.url}: prompts have tokens that are others to {engine.about.model}: {shown}; set "
                "tokenizer.path to the folder that it serves"
            )

    def _require_own_log_probs(self, engine: VLLM, request: Request) -> None:
        """Not of what sampling has made of them."""
        prompt = request.prompt[:1]  # behind which many tokens are likely
        choices = [self._answer(engine, prompt, 1, 0, one, likeliest=1) for one in (_NEUTRAL, self.sampling)]
        with read_from(_PATH):
            own, asked = (choice["logprobs"]["top_logprobs"][0] for choice in choices)
        if any(abs(own[token] - asked[token]) > _SAME for token in own.keys() & asked.keys()):
            raise UserError(
                f"url={engine.server.url}: tells log-probabilities after temperature and filters; start vLLM with "
                "--logprobs-mode raw_logprobs"
            )

    def _asked(self, request: Request, limit: int, engine: VLLM) -> Completion:
        choice = self._answer(engine, request.prompt, limit, request.stream % _SEEDS, self.sampling)
        with read_from(_PATH):
            tokens = [int(token) for token in choice["token_ids"]]
            log_probs = [float(log_prob) for log_prob in choice["logprobs"]["token_logprobs"]]
            reason = choice["finish_reason"]
            versions = {span["version"] for span in choice["weight_versions"]} if self.weight_version else set()
        if len(tokens) != len(log_probs) or not 1 <= len(tokens) <= limit:
            raise NoAnswer(f"{len(tokens)} tokens with {len(log_probs)} log-probabilities, where 1 to {limit} may be")
        if versions - {self.weight_version}:
            raise Refused(0, f"answers by weights {', '.join(sorted(versions))}, not by those that were sent last")
        if reason not in ("stop", "length"):  # a server that is paused aborts
            raise NoAnswer(f"finish_reason {reason}")
        for number in range(1, len(tokens) + 1):  # as they came
            kept, of_kept = tokens[:number], log_probs[:number]
            if ours := self._endings.reached(kept, of_kept, limit):
                return Completion(tuple(kept), tuple(of_kept), ours)
        return Completion(tuple(tokens), tuple(log_probs), reason)

    def _answer(
        self, engine: VLLM, prompt: Sequence[int], limit: int, seed: int, sampling: Sampling, likeliest: int = 0
    ) -> Any:
        """
        Args:
            likeliest: tokens whose log-probabilities come beside that of the one which was drawn.

        Raises:
            ServerError: there is no answer.
        """
        body = {
            "model": engine.about.model,
            "prompt": list(prompt),
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "stop": list(sampling.stop),
            "stop_token_ids": sorted(self._endings.tokens),
            "ignore_eos": True,
            "logprobs": likeliest,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        if self.weight_version:
            body["return_weight_versions"] = True
        found = asked_for_json(engine.server, _PATH, body)
        with read_from(_PATH):
            (choice,) = found["choices"]
        return choice
