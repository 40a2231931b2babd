"""Requests under way: some at a time, asked again where there was no answer, of several servers."""

import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from distill_tune.cache.encoding import AnyEncoding, TopEncoding, positions_in
from distill_tune.data.batch import Batch
from distill_tune.serve.connection import Busy, NoAnswer, Refused
from distill_tune.serve.engine import Engine

_FIRST_WAIT, _LONGEST_WAIT = 0.25, 30.0  # seconds


def wait_before(round: int) -> float:
    """Seconds before a request is asked for the ``round``-th time again, from 1 on."""
    return min(_FIRST_WAIT * 2 ** (round - 1), _LONGEST_WAIT)


class Answered(NamedTuple):
    """Each row's record in its bytes, and the record of all of them that these are."""

    rows: list[bytes]
    record: Any


Answer = concurrent.futures.Future[Answered]
T = TypeVar("T")


class AllLost(Exception):
    """No server answers any more; in a line, why each does not."""


class _Asked:
    """A server, and how it has answered."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.under_way = 0
        self.answered = 0  # requests, so far
        self.failed_in_a_row = 0
        self.is_busy = False
        self.lost: str | None = None


class Requests:
    """Asks servers of one model for records of batches, or what else they give, in threads that end with the process.

    A request that has no answer goes to another server, and once all have been tried it waits, longer each time. A
    server is left out, which is told, when it refuses, or when it has failed a request, or as many requests as it has
    at a time, for all their tries and has answered no other meanwhile. That it is busy, which is told, is no failure
    before a request has waited for ``patience`` seconds. What is asked for is a function of the batch, so
    neither the server nor the number of tries shows in the answer.

    Args:
        engines: each with its ``server``; what is asked of them besides is up to the requests.
        concurrency: requests that each server has at a time.
        retries: of a request, at one server.
        patience: seconds.
        say: hears of servers that are left out; from any thread.
        what: the servers are, where that is told.
    """

    def __init__(
        self,
        engines: Sequence[Any],
        *,
        concurrency: int,
        retries: int,
        patience: float = 300,
        say: Callable[[str], None] = print,
        wait: Callable[[float], None] = time.sleep,
        what: str = "teacher",
    ) -> None:
        self._servers = [_Asked(engine) for engine in engines]
        self._concurrency, self._retries, self._say, self._wait = concurrency, retries, say, wait
        self._patience, self._what = patience, what
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[Any], Any], concurrent.futures.Future[Any]]] = queue.SimpleQueue()
        self.at_a_time = concurrency * len(engines)
        self._threads = 0

    def ask(self, batch: Batch, encoding: AnyEncoding, seed: int) -> Answer:
        """Each row's record, in time; see :meth:`submit`."""
        return self.submit(lambda engine: _records(engine, batch, encoding, seed))

    def submit(self, ask: Callable[[Any], T]) -> "concurrent.futures.Future[T]":
        """What ``ask`` has of one of the engines, in time; it may be called several times.

        Args:
            ask: raises :class:`~distill_tune.serve.connection.ServerError`, or ValueError for an answer that cannot be.

        Returns:
            A future, whose exception is :class:`AllLost` where there will be no answer.
        """
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.put((ask, answer))
        if self._threads < self.at_a_time:
            self._threads += 1
            threading.Thread(target=self._work, daemon=True, name=f"served {self._what}").start()
        return answer

    @property
    def answering(self) -> list[Any]:
        """The engines that have not been left out."""
        return [server.engine for server in self._servers if server.lost is None]

    def _work(self) -> None:
        while True:
            ask, answer = self._jobs.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._answered(ask))
            except BaseException as error:  # whoever waits for the answer raises it
                answer.set_exception(error)

    def _answered(self, ask: Callable[[Any], T]) -> T:
        tries: dict[int, int] = {}
        failures: dict[int, int] = {}  # of these tries
        answered_before: dict[int, int] = {}  # by a server, when it first failed this request
        waited = 0.0  # seconds
        while True:
            number, seconds = self._next(tries)
            waited += seconds
            server = self._servers[number]
            try:
                found = ask(server.engine)
                with self._lock:
                    server.answered += 1
                    server.failed_in_a_row = 0
                    server.is_busy = False
                return found
            except Refused as error:
                self._leave_out(server, str(error))
            except (NoAnswer, ValueError) as error:
                tries[number] = tries.get(number, 0) + 1
                if isinstance(error, Busy) and waited < self._patience:
                    self._tell_busy(server, error)
                    continue
                failures[number] = failures.get(number, 0) + 1
                answered_before.setdefault(number, server.answered)
                with self._lock:
                    server.failed_in_a_row += 1
                    is_down = server.failed_in_a_row > self._retries * self._concurrency
                if is_down:
                    self._leave_out(server, f"{error}, {server.failed_in_a_row} times in a row")
                elif failures[number] > self._retries:
                    if server.answered > answered_before[number]:
                        raise AllLost(f"{server.engine.server.url} answers, but not this request: {error}") from error
                    self._leave_out(server, f"{error}, {failures[number]} times")
            finally:
                with self._lock:
                    server.under_way -= 1

    def _next(self, tries: dict[int, int]) -> tuple[int, float]:
        """The server to ask next, of those that this request has tried least, and the seconds that were waited.

        There is a wait before each further round.

        Raises:
            AllLost: there is none.
        """
        waited = 0.0
        while True:
            with self._lock:
                alive = [number for number, server in enumerate(self._servers) if server.lost is None]
                if not alive:
                    raise AllLost("; ".join(f"{server.engine.server.url}: {server.lost}" for server in self._servers))
                number = min(alive, key=lambda one: (tries.get(one, 0), self._servers[one].under_way))
                rounds = tries.get(number, 0)
                if not rounds or waited:
                    self._servers[number].under_way += 1
                    return number, waited
            waited = wait_before(rounds)
            self._wait(waited)

    def _tell_busy(self, server: _Asked, error: Busy) -> None:
        with self._lock:
            was_busy, server.is_busy = server.is_busy, True
        if not was_busy:
            self._say(f"{self._what} at {server.engine.server.url}: busy ({error}); the run waits for it")

    def _leave_out(self, server: _Asked, reason: str) -> None:
        with self._lock:
            if server.lost is not None:
                return
            server.lost = reason
            left = sum(one.lost is None for one in self._servers)
        self._say(
            f"{self._what} at {server.engine.server.url}: left out ({reason}); {left} of {len(self._servers)} answer"
        )


def _records(engine: Engine, batch: Batch, encoding: AnyEncoding, seed: int) -> Answered:
    rows = engine.records(batch, encoding, seed)
    found = [positions_in(row) for row in rows]
    if found != list(batch.num_supervised):
        raise NoAnswer(f"records of {found} positions, where {list(batch.num_supervised)} were asked for")
    if isinstance(encoding, TopEncoding):
        encoding = encoding.beside(batch.likeliest)
    return Answered(rows, encoding.decode(rows))
