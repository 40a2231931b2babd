"""A server from its teacher's weights to its end."""

import contextlib
import hashlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch
import uvicorn

from distill_tune.data.batch import joined
from distill_tune.data.shape import Shape
from distill_tune.disk import sampled_digest
from distill_tune.errors import UserError
from distill_tune.losses import HiddenStates
from distill_tune.models.vocabulary import Vocabulary
from distill_tune.serve.app import application
from distill_tune.serve.load import AnyTeacher
from distill_tune.serve.scorer import Scorer

_LONGEST = 2**20  # tokens of a row, where a model does not say


class Stop:
    """The signal that has come; a second one ends the process at once."""

    def __init__(self) -> None:
        self.number = 0
        self.server: uvicorn.Server | None = None

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else "nothing"

    def asked(self, number: int, frame: FrameType | None) -> None:
        if self.server is None:  # nothing is under way while the weights are read
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if self.number:  # a forward pass cannot be interrupted, and there is nothing here to lose
            print(f"ended by a second {signal.Signals(number).name}, requests under way unanswered", flush=True)
            os._exit(128 + number)
        self.number, self.server.should_exit = number, True


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop.asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Server(uvicorn.Server):
    """Leaves signals to :class:`Stop`, and tells when it answers."""

    def __init__(self, config: uvicorn.Config, told: str) -> None:
        super().__init__(config)
        self._told = told

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._told, flush=True)


def loaded(
    teacher: AnyTeacher,
    device: torch.device,
    dtype: torch.dtype,
    *,
    name: str,
    settings: str,
    token: str | None,
    most_tokens_of_batch: int,
    most_tokens_of_request: int,
) -> tuple[Any, str]:
    """Read a teacher's weights; the application that answers with it, and what is to be told of it.

    Args:
        settings: what else its answers depend on, beside its weights and ``dtype``.

    Raises:
        UserError: its weights cannot be read; several teachers do not have the same tokens.
    """
    each: list[Any] = [one for one, _ in teacher.each(Shape((), ()))]
    vocabulary = _vocabulary_of(each)
    files = [file for one in each for file in one.files]
    content = hashlib.sha256(f"{sampled_digest(files)};{dtype};{settings}".encode()).hexdigest()
    student: Any = None  # which none of them asks for
    teacher.load(student, device)
    first = torch.zeros(2, dtype=torch.int32)
    signal_of_two = teacher(joined([(first, first)]).to(device))
    # Of several teachers' mixture there are no hidden states.
    width, projection = 0, None
    if isinstance(signal_of_two, HiddenStates):
        width, projection = signal_of_two.hidden.shape[1], signal_of_two.projection
    scorer = Scorer(teacher, signal_of_two.vocab_size, width, device, most_tokens=most_tokens_of_batch)
    answers = application(
        scorer,
        model=name,
        content=content,
        vocabulary=vocabulary,
        projection=projection,
        most_tokens_of_row=min(*(one.max_seq_len or _LONGEST for one in each), most_tokens_of_request),
        most_tokens_of_request=most_tokens_of_request,
        token=token,
    )
    of_dtype = str(dtype).removeprefix("torch.")
    return answers, f"serving {name} ({scorer.vocab_size} tokens, {of_dtype}, {device})"


def _vocabulary_of(teachers: Sequence[Any]) -> Vocabulary | None:
    """
    Raises:
        UserError: they do not have the same.
    """
    (first, *others) = [Vocabulary.of(folder) for one in teachers for folder in one.folders]
    for teacher, other in zip(teachers[1:], others, strict=True):
        told = f"teacher_model: {teacher.folders[0]} and {teachers[0].folders[0]} have not the same tokens"
        if first is None or other is None:
            raise UserError(f"{told}: one of them has no tokenizer that can be read")
        if differing := first.require_same_ordinary(other, told):
            index = min(differing)
            raise UserError(f"{told}: {index} {differing[index]}")
    return first


def run(served: tuple[Any, str], listening: socket.socket, stop: Stop, seconds_to_end: int) -> None:
    """Answer until a signal comes, then end what is under way, for so many seconds at most.

    Raises:
        UserError: the server cannot start.
    """
    answers, told = served
    host, port = listening.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        answers,
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=seconds_to_end,
        timeout_keep_alive=30,
        server_header=False,
    )
    stop.server = _Server(config, f"{told} on {url}")
    stop.server.run(sockets=[listening])
    if not stop.number:
        raise UserError(f"serve: the server on {url} has ended by itself")
