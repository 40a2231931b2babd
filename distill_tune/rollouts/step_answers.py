"""Who answers the rows of a step, and what they have answered."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.batch import Row
from distill_tune.generation import Completion, Generator, Request, stream_of
from distill_tune.generation.of_model import generator_of
from distill_tune.generation.server import ServerDecoder
from distill_tune.rollouts.ahead import KeptAnswers
from distill_tune.rollouts.answers import before_tokens
from distill_tune.rollouts.checks import Checked
from distill_tune.rollouts.on_policy import own_rows
from distill_tune.rollouts.other_tokens import OtherTokens
from distill_tune.rollouts.prompts import answered, prompt_of
from distill_tune.rollouts.writers import written_by_all_ranks
from distill_tune.training.served_adapter import ServedAdapter
from distill_tune.training.served_weights import ServedWeights

from torchtune.modules import TransformerDecoder

SENT_ADAPTERS = "sent_adapters"  # of a run's folder
MAX_SLOTS = 64  # rows that are answered at a time


class Answer(NamedTuple):
    """A row of a step, with its answer; ``completion`` is None where it is the data's."""

    row: Row
    completion: Completion | None
    is_own: bool


class _Asked(NamedTuple):
    """
    Attributes:
        rows: of a step, on all ranks, as the data has them.
        is_own: which of them the student answers, ``[rows]``, bool.
        wanted: of each row that the step is to have, the number of one of ``rows``.
        requests: of each of these.
    """

    rows: list[Row]
    is_own: numpy.ndarray
    wanted: list[int]
    requests: list[Request]


class StepAnswers:
    """
    Args:
        checked: what of the config has been found to fit.
        seed: of the run.
    """

    def __init__(self, checked: Checked, seed: int) -> None:
        self._of, self._settings, self._seed = checked, checked.settings, seed
        self._plan, self._steps_per_epoch = checked.steps.plan, checked.steps.steps_per_epoch
        self._rows_before = [0, *itertools.accumulate(map(len, self._plan.datasets))]
        self._ahead: dict[int, list[Completion | None]] = {}
        built = checked.built
        self._others = OtherTokens(
            built.tokenizer, checked.ends, built.teacher.other_tokenizers, checked.room.teacher_reads
        )

    def begin(self, student: TransformerDecoder, device: torch.device, run: Path) -> None:
        """Once the models have their weights."""
        self._student = student
        models_that_write = (self._settings.server or student, *(one.model for one in self._of.writing_teachers))
        self._by_student, *self._by_teachers = (
            generator_of(
                model,
                self._of.ends,
                self._of.sampling,
                tokenizer=self._of.built.tokenizer,
                max_slots=MAX_SLOTS,
                known_tokens=self._of.built.common_vocab_size,
            )
            for model in models_that_write
        )
        self._sender = self._sender_to(self._by_student, device, run)
        self._kept = KeptAnswers(run, self._settings.every, self._seed, self._of.settings_of_answers)

    def _sender_to(self, generator: Generator, device: torch.device, run: Path) -> ServedAdapter | ServedWeights | None:
        """What keeps a server's weights those of the student."""
        if not isinstance(generator, ServerDecoder):
            return None
        checkpoint = self._of.built.student_checkpoint
        if models.adapter_names(self._student):
            return ServedAdapter(generator, checkpoint, run / SENT_ADAPTERS)
        return ServedWeights(generator, checkpoint, models.computed_in(self._student), device)

    def of_step(self, step: int) -> list[Answer]:
        """The rows of a step, on all ranks, with their answers. All ranks call it."""
        asked = self._asked(step)
        if step not in self._ahead:
            self._ahead = self._kept.of_step(step, len(asked.wanted)) or self._written_from(step, asked)
        return [
            Answer(self._answered(asked.rows[at], found) if found else asked.rows[at], found, bool(asked.is_own[at]))
            for at, found in zip(asked.wanted, self._ahead[step], strict=True)
        ]

    def _answered(self, row: Row, found: Completion) -> Row:
        return self._others(answered(row, found.tokens), found.tokens)

    def as_long_as_may_be(self, step: int) -> list[Row]:
        """The rows of a step of the first epoch, with answers of any tokens."""
        asked = self._asked(step, self._plan.rows(0, step))

        def longest(row: Row, num_tokens: int) -> Row:
            return self._others.as_long_as_may_be(answered(row, [0] * num_tokens), num_tokens)

        return [
            longest(asked.rows[at], request.max_new_tokens or 0)
            if asked.is_own[at] or self._settings.seq_kd
            else asked.rows[at]
            for at, request in zip(asked.wanted, asked.requests, strict=True)
        ]

    def _written_from(self, step: int, first: _Asked) -> dict[int, list[Completion | None]]:
        """The answers of this step, which asks ``first``, and of those that are written with it."""
        end = min(step - step % self._settings.every + self._settings.every, self._of.steps.total_steps)
        asked = {step: first} | {at: self._asked(at) for at in range(step + 1, end)}
        if self._sender is not None and any(of.is_own.any() for of in asked.values()):
            self._sender.send(self._student, step)
        written: dict[int, list[Completion | None]] = {at: [None] * len(of.wanted) for at, of in asked.items()}
        for number, generator in enumerate((self._by_student, *self._by_teachers)):
            chosen = [(at, place) for at, of in asked.items() for place in self._answered_by(number, of)]
            requests = [asked[at].requests[place] for at, place in chosen]
            of_rows = [asked[at].wanted[place] for at, place in chosen]
            for (at, place), completion in zip(chosen, written_by_all_ranks(generator, requests, of_rows), strict=True):
                written[at][place] = before_tokens(completion, self._of.built.teacher.other_tokens)
        self._kept.keep(written)
        return written

    def _answered_by(self, number: int, asked: _Asked) -> Iterator[int]:
        """Which of the wanted rows are answered by the student (0) or by one of the teachers that write (1, ...)."""
        for place, at in enumerate(asked.wanted):
            writer = 0 if asked.is_own[at] else 1 + asked.rows[at].teacher_id
            if writer == number:
                yield place

    def _asked(self, step: int, rows: list[Row] | None = None) -> _Asked:
        rows = rows or self._plan.rows(*divmod(step, self._steps_per_epoch))
        is_own = own_rows(len(rows), self._of.share_at(step), self._seed, step)
        numbers = _occurrences([self._number(row) for row in rows])
        each = self._settings.samples_per_prompt
        wanted = [(at, sample) for at, own in enumerate(is_own) for sample in range(each if own else 1)]
        requests = [
            self._request(rows[at], bool(is_own[at]), stream_of(self._seed, step, number, occurrence * each + sample))
            for at, sample in wanted
            for number, occurrence in [numbers[at]]
        ]
        return _Asked(rows, is_own, [at for at, _ in wanted], requests)

    def _number(self, row: Row) -> int:
        """Among the rows of all datasets."""
        dataset, number = row.place
        return self._rows_before[dataset] + number

    def _request(self, row: Row, is_own: bool, stream: int) -> Request:
        """What is asked of the student, or of a teacher, which answers its own prompt where the row has one."""
        prompt = of_teacher = prompt_of(row.tokens, row.labels)
        if row.teacher_tokens is not None and row.teacher_labels is not None:
            of_teacher = prompt_of(row.teacher_tokens, row.teacher_labels)
        asked = prompt if is_own else of_teacher
        longest = max([len(of_teacher), *(len(prompt_of(its.tokens, its.labels)) for its in row.others)])
        return Request(asked.tolist(), stream, self._of.room.behind(len(prompt), longest))


def _occurrences(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Each number, and how often it came before."""
    seen: dict[int, int] = {}
    found = []
    for number in numbers:
        found.append((number, seen.get(number, 0)))
        seen[number] = seen.get(number, 0) + 1
    return found
