"""Steps whose answers are written while the student trains."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.batch import Batch, Row, joined
from distill_tune.data.conversation import IGNORE_INDEX
from distill_tune.data.shape import Shape
from distill_tune.metrics_file import read_metrics
from distill_tune.models.cached_rows import KeyValueCache
from distill_tune.rollouts.answer_watch import AnswerWatch
from distill_tune.rollouts.answers import measures_of
from distill_tune.rollouts.checks import Checked
from distill_tune.rollouts.marks import Marks, likeliest_of, marks_of
from distill_tune.rollouts.step_answers import MAX_SLOTS, Answer, StepAnswers
from distill_tune.rollouts.step_rows import Say, StepRows
from distill_tune.rollouts.written import WrittenRollouts, marked
from distill_tune.teachers import LiveTeacher
from distill_tune.training.distributed import is_main_process, on_all_ranks, reduced_over_ranks
from distill_tune.training.lost_teacher import is_lost

from torchtune.modules import TransformerDecoder

_SHOWN = 4  # rollouts that are written, each time


class RowsOnPolicy:
    """Takes each step's rows from the plan, and puts answers behind their prompts.

    1. Which rows the student answers is a function of seed and step; their answers are of seed, step, row and sample,
       and of its weights. So nothing need be stored for a run to go on, unless they are of several steps at once.
    2. Each rank writes the answers of its share, and hears of all others': the step's rows are the same on every rank.
    3. They are cut into micro-batches by their tokens, and its supervised tokens counted, as the plan does with the
       data's rows.

    Args:
        checked: what of the config has been found to fit.
        seed: of the run.
    """

    def __init__(self, checked: Checked, seed: int) -> None:
        self._of, self._answers = checked, StepAnswers(checked, seed)
        self._settings, self._steps, self._teacher = checked.settings, checked.steps, checked.built.teacher
        self._steps.plan.hold(checked.most_tokens)

    def begin(self, student: TransformerDecoder, device: torch.device, step: int, run: Path) -> None:
        """As :meth:`RowsOfData.begin`."""
        self._student, self._head, self._device = student, models.output_head(student), device
        history = itertools.takewhile(lambda line: line["step"] <= step, read_metrics(run / "metrics.jsonl"))
        self._watch = AnswerWatch(history if step else ())
        self._file = WrittenRollouts(run, step) if is_main_process() else None
        self._answers.begin(student, device, run)

    def of_step(self, step: int, say: Say) -> StepRows:
        """As :meth:`RowsOfData.of_step`; a remark where answers run away."""
        started = time.perf_counter()
        answers = self._answers.of_step(step)
        seconds = time.perf_counter() - started
        rows = [answer.row._replace(is_own=answer.is_own) for answer in answers]
        shape = _shape_of(rows, bool(self._teacher.names))
        hands = [sorted(hand.tolist(), key=lambda at: not rows[at].is_own) for hand in self._steps.plan.dealt(shape)]
        batches = [joined([rows[at] for at in hand]) for hand in hands]
        written = [(answer.completion, answer.is_own) for answer in answers if answer.completion]
        own = [completion for completion, is_own in written if is_own]
        measured = measures_of(own, sum(len(completion.tokens) for completion, _ in written), seconds)
        if self._teacher.tokens_of_student:
            batches = self._with_likeliest(batches)
        self._teacher.expect(iter(batches))
        if step % self._settings.log_every_n_steps == 0 and own and not is_lost(self._teacher, batches):
            measured |= self._marked(step, answers, hands, batches)
        if alarm := self._watch.alarm(measured):
            say(f"step {step + 1}: {alarm}")
        # Answers that a stop text ends at once have no token: a step of such alone is divided by 1.
        return StepRows(batches, max(1, shape.num_supervised), shape, measured)

    @contextlib.contextmanager
    def _as_it_answers(self) -> Iterator[None]:
        """The student without dropout."""
        was_training = self._student.training
        self._student.eval()
        yield
        self._student.train(was_training)

    def _with_likeliest(self, batches: Sequence[Batch]) -> list[Batch]:
        """With the student's likeliest tokens, of which the teacher is to tell as well. All ranks call it."""
        count, common = self._teacher.tokens_of_student, self._of.built.common_vocab_size
        with self._as_it_answers():
            return [
                dataclasses.replace(
                    batch, likeliest=likeliest_of(self._student, self._head, batch.to(self._device), count, common)
                )
                for batch in batches
            ]

    # ---- Marks

    def _marked(
        self, step: int, answers: Sequence[Answer], hands: Sequence[Sequence[int]], batches: Sequence[Batch]
    ) -> dict[str, float]:
        """What student and teacher think of the student's answers; some are written down. All ranks call it."""
        of_answer: dict[int, Marks] = {}
        common = self._of.built.common_vocab_size
        with self._as_it_answers():
            for hand, batch in zip(hands, batches, strict=True):
                marks = marks_of(self._student, self._head, self._teacher, batch.to(self._device), common)
                ends = [0, *itertools.accumulate(batch.num_supervised)]
                of_answer |= {at: marks[begin:end] for at, begin, end in zip(hand, ends, ends[1:], strict=False)}
            self._teacher.release()
        own = [(answers[at], marks) for at, marks in sorted(of_answer.items()) if answers[at].is_own]
        shown = [at for at, answer in enumerate(answers) if answer.is_own][:_SHOWN]
        lines = {at: self._line(step, answers[at], of_answer[at]) for at in shown if at in of_answer}
        of_all = {at: line for of_rank in on_all_ranks(lines) for at, line in of_rank.items()}
        if self._file is not None:
            self._file.write([of_all[at] for at in shown])
        return _means(own)

    def _line(self, step: int, answer: Answer, marks: Marks) -> dict[str, Any]:
        completion, tokenizer = answer.completion, self._of.built.tokenizer
        assert completion is not None
        prompt = answer.row.tokens[: len(answer.row.tokens) - len(completion.tokens)].tolist()
        return {
            "step": step + 1,
            "row": self._steps.plan.origin(*answer.row.place),
            "prompt": tokenizer.decode(prompt),
            "answer": tokenizer.decode(list(completion.tokens)),
            "finish_reason": completion.finish_reason,
            "marks": marked(tokenizer, completion.tokens, marks.log_ratio.tolist()),
        }

    # ---- For estimates, in which each answer is as long as it may be

    @property
    def longest(self) -> int:
        """As :attr:`RowsOfData.longest`."""
        return max(self._of.longest.student, self._of.longest.teacher)

    @property
    def largest_shapes(self) -> list[Shape]:
        """As :attr:`RowsOfData.largest_shapes`, of rows that follow each of the teachers."""
        longest = self._of.longest
        rows = max(1, self._of.most_tokens[0] // longest.student)
        lengths, learned, of_teacher = (
            (tokens,) * rows for tokens in (longest.student, longest.learned, longest.teacher)
        )
        datasets = self._steps.plan.datasets
        differ = any(of_dataset.teacher is not None for of_dataset in datasets)
        others = (Shape(of_teacher, learned),) * len(datasets[0].others)
        following = [(number,) * rows for number in range(len(self._teacher.names))] or [()]
        return [Shape(lengths, learned, of_teacher if differ else (), ids, others) for ids in following]

    def shapes(self, step: int) -> list[Shape]:
        """As :meth:`RowsOfData.shapes`."""
        shape = _shape_of(self._answers.as_long_as_may_be(step), bool(self._teacher.names))
        return [shape.of_rows(hand) for hand in self._steps.plan.dealt(shape)]

    def cache_bytes(self, rows: int, dtype: torch.dtype) -> float:
        """As :meth:`RowsOfData.cache_bytes`."""
        longest, settings = self._of.longest, self._settings
        writing = [] if settings.server is not None else [(self._of.built.student, longest.student)]
        writing += [(one.model, longest.teacher) for one in self._of.writing_teachers if isinstance(one, LiveTeacher)]
        of_slot = sum(KeyValueCache.bytes_of_slot(model, tokens, dtype) for model, tokens in writing)
        return min(MAX_SLOTS, rows * min(settings.every, self._steps.total_steps)) * of_slot


def _shape_of(rows: Sequence[Row], follow_teachers: bool) -> Shape:
    of_teacher = [len(row.teacher_tokens) for row in rows if row.teacher_tokens is not None]
    return Shape(
        tuple(len(row.tokens) for row in rows),
        tuple(int((row.labels[1:] != IGNORE_INDEX).sum()) for row in rows),
        tuple(of_teacher),
        tuple(row.teacher_id for row in rows) if follow_teachers else (),
        tuple(_shape_of(read, False) for read in zip(*(row.others for row in rows), strict=True)),
    )


def _means(own: Sequence[tuple[Answer, Marks]]) -> dict[str, float]:
    """Over the tokens of the student's answers, on all ranks; without what the teacher does not tell."""
    sums = {name: torch.zeros(2, dtype=torch.float64) for name in _MEASURES}
    largest = 0.0
    for answer, marks in own:
        assert answer.completion is not None
        gap = (marks.log_prob - torch.tensor(answer.completion.log_probs)).abs()
        values = {
            "rollout_student_entropy": marks.student_entropy,
            "rollout_teacher_entropy": marks.teacher_entropy,
            "rollout_overlap": marks.overlap,
            "rollout_acceptance": marks.log_ratio.clamp(max=0).exp(),
            "rollout_log_prob_gap": gap,
        }
        for name, of_tokens in values.items():
            told = of_tokens[~of_tokens.isnan()].double()
            sums[name] += torch.stack([told.sum(), torch.tensor(float(len(told)))])
        largest = max([largest, *gap.tolist()])
    totals, (largest,) = reduced_over_ranks([value for pair in sums.values() for value in pair], most=[largest])
    pairs = zip(sums, zip(totals[::2], totals[1::2], strict=True), strict=True)
    means = {name: total / count for name, (total, count) in pairs if count}
    return means | {"rollout_largest_log_prob_gap": largest}


_MEASURES = (
    "rollout_student_entropy",
    "rollout_teacher_entropy",
    "rollout_overlap",
    "rollout_acceptance",
    "rollout_log_prob_gap",
)
