"""What of a config with rollouts can be found wrong before a model loads."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models, qat
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.errors import UserError
from distill_tune.generation import Sampling
from distill_tune.generation.ends import ends_of, require_same_ends
from distill_tune.rollouts.on_policy import OnPolicy
from distill_tune.rollouts.prompts import prompt_lengths
from distill_tune.rollouts.writers import teachers_that_write
from distill_tune.teachers import HuggingFace, LiveTeacher, Teacher
from distill_tune.training.preparation import Models, Steps
from distill_tune.training.schedules import Schedules

_SHARE = "rollouts.lmbda"


class Room(NamedTuple):
    """For an answer behind a prompt.

    Attributes:
        student_reads, teacher_reads: tokens of a row at most; of the teacher None where nothing says.
        max_new_tokens: of an answer.
    """

    student_reads: int
    teacher_reads: int | None
    max_new_tokens: int

    @property
    def least_read(self) -> int:
        """What both models read of a row."""
        return min(self.student_reads, self.teacher_reads or self.student_reads)

    def behind(self, prompt: int, of_teacher: int) -> int:
        """Tokens of an answer to a prompt of so many, as student and teacher read it; below 1: there is no room."""
        bound = self.student_reads - prompt
        if self.teacher_reads is not None:
            bound = min(bound, self.teacher_reads - of_teacher)
        return min(self.max_new_tokens, bound)


class Lengths(NamedTuple):
    """The most tokens of a row with an answer that is as long as it may be.

    Attributes:
        student, teacher: as these read it.
        learned: of its answer.
    """

    student: int
    teacher: int
    learned: int


@dataclasses.dataclass(frozen=True)
class Checked:
    """
    Attributes:
        ends: the tokens at which an answer ends.
        longest: of all rows, the data's answers included.
        most_tokens: of a micro-batch of several rows, as a plan's ``limits`` have them.
        room: for answers.
        writing_teachers: each that rows choose from, where teachers write answers.
    """

    settings: OnPolicy
    built: Models
    steps: Steps
    shares: Schedules
    ends: frozenset[int]
    longest: Lengths
    most_tokens: Sequence[int]
    room: Room
    writing_teachers: Sequence[LiveTeacher | HuggingFace]

    @property
    def sampling(self) -> Sampling:
        return _sampling(self.settings)

    def share_at(self, step: int) -> float:
        """Of the rows of the step that follows ``step`` steps, those that the student answers."""
        return self.shares.at(step)[_SHARE]

    def settings_of_answers(self, step: int) -> dict[str, Any]:
        """What the answers to a step depend on beside seed, rows and weights, by keys under ``rollouts``, for JSON."""
        of_sampling = json.loads(json.dumps(dataclasses.asdict(self.sampling)))
        return {
            "lmbda": float(self.share_at(step)),
            "seq_kd": self.settings.seq_kd,
            "samples_per_prompt": self.settings.samples_per_prompt,
        } | {f"sampling.{name}": value for name, value in of_sampling.items()}


def check_rollouts(
    settings: OnPolicy, built: Models, steps: Steps, batch_size: int | None, max_tokens_per_batch: int | None
) -> Checked:
    """
    Raises:
        UserError: a teacher that cannot judge or write such answers, or ends them otherwise; a loss that would teach
            the student its own answers as if they were right; a row without a prompt, or one that a model cannot read
            with an answer behind it.
    """
    shares = Schedules(steps.steps_per_epoch, steps.total_steps, {_SHARE: settings.lmbda})
    _require_fitting_loss(shares, steps)
    if not built.teacher.answers_new_rows:
        raise UserError(
            "rollouts: teacher_model has records of the data's answers alone, and none of those that are written while "
            "the student trains; take the teacher itself, or distill_tune.teachers.Served"
        )
    student_tokens = models.output_head(built.student).vocab_size
    if settings.server is not None and (built.common_vocab_size or student_tokens) < student_tokens:
        raise UserError(
            f"rollouts.server: it may answer with each of the student's {student_tokens} tokens, teacher_model knows "
            f"the first {built.common_vocab_size}; leave it out, so that the student answers here with these alone"
        )
    if settings.server is not None and qat.scheme_of(built.student) is not None:
        raise UserError(
            "rollouts.server: it would answer with the student's weights as they are, not rounded as `quantizer` has "
            "them; leave it out, so that the student answers here"
        )
    writing = teachers_that_write(built.teacher) if settings.seq_kd else []
    max_new_tokens = _sampling(settings).max_new_tokens
    room = Room(built.student.max_seq_len, _tokens_read(built.teacher), max_new_tokens)
    lengths = [_lengths(rows, room) for rows in steps.plan.datasets]
    longest = Lengths(*map(max, zip(*lengths, strict=True)))
    try:
        built.teacher.require_rows(longest.teacher, steps.plan.used_tokens)
    except UserError as error:
        raise UserError(
            f"rollouts.sampling.max_new_tokens={max_new_tokens}: lower it, or shorten prompts: with an answer of so "
            f"many tokens, {str(error).partition(';')[0]}"
        ) from error
    if max_tokens_per_batch is not None and longest.student > max_tokens_per_batch:
        raise UserError(
            f"max_tokens_per_batch={max_tokens_per_batch}: a prompt with an answer of "
            f"rollouts.sampling.max_new_tokens={max_new_tokens} may have {longest.student} tokens; raise the one or "
            "lower the other"
        )
    if max_tokens_per_batch is None:
        most = [(batch_size or 1) * tokens for tokens in longest]
    else:
        most = [max_tokens_per_batch, max(max_tokens_per_batch, longest.teacher), max_tokens_per_batch]
    return Checked(settings, built, steps, shares, _ends(built), longest, most, room, writing)


def _sampling(settings: OnPolicy) -> Sampling:
    assert isinstance(settings.sampling, Sampling)
    return settings.sampling


def _require_fitting_loss(shares: Schedules, steps: Steps) -> None:
    """
    Raises:
        UserError: a step of the student's answers alone with a share of cross-entropy, or with some of them and no
            share of the divergence.
    """
    for step in shares.some_steps:
        share, kd_ratio = shares.at(step)[_SHARE], steps.schedules.at(step)["kd_ratio"]
        if (share > 0 and kd_ratio == 0) or (share == 1 and kd_ratio < 1):
            raise UserError(
                f"rollouts: kd_ratio is {kd_ratio:g} at step {step}, where the student writes "
                f"{'every answer' if share == 1 else 'answers'}: of its own the teacher's divergence is learned alone, "
                "no cross-entropy, which would teach them as if they were right; set kd_ratio="
                + ("1" if share == 1 else "1, or above 0")
            )


def _tokens_read(teacher: Teacher) -> int | None:
    """The most that every teacher reads of a row; None where none says."""
    every = [one for one, _ in teacher.each(Shape((), ()))]
    own = [getattr(one, "max_seq_len", None) for one in every]
    of_models = [model.max_seq_len for one in every for model in one.models]
    return min([*filter(None, own), *of_models], default=None)


def _ends(built: Models) -> frozenset[int]:
    folder, vocab_size = built.student_checkpoint.folder, models.output_head(built.student).vocab_size
    ends = ends_of(built.tokenizer, folder, vocab_size)
    if not ends:
        raise UserError("rollouts: neither the tokenizer nor the student's folder names a token that ends an answer")
    require_same_ends(built.tokenizer, folder, built.teacher.folders, vocab_size)
    return ends


def _lengths(rows: TokenisedRows, room: Room) -> Lengths:
    """Of the rows of a dataset.

    Raises:
        UserError: one cannot be answered.
    """

    def first(rows_found: numpy.ndarray) -> str | None:
        return rows.origin(int(rows_found.nonzero()[0][0])) if rows_found.any() else None

    prompts = prompt_lengths(rows)
    read = [prompt_lengths(its) for its in (rows.teacher, *rows.others) if its is not None]
    of_teacher = functools.reduce(numpy.maximum, read) if read else prompts
    answers = numpy.array([room.behind(*both) for both in zip(prompts.tolist(), of_teacher.tolist(), strict=True)])
    if row := first(prompts == 0):
        raise UserError(
            f"rollouts: {row} has no prompt before its answer: all of it is learned; take rows with questions, without "
            "train_on_input; where texts are the questions, dataset._component_=distill_tune.data.instruct with "
            "dataset.column_map={prompt: text}"
        )
    if row := first(answers < 1):
        raise UserError(
            f"rollouts: {row} has a prompt that leaves no room for an answer: the models read {room.least_read}"
        )
    return Lengths(
        int(numpy.maximum(prompts + answers, rows.lengths).max()),
        int(numpy.maximum(of_teacher + answers, rows.teacher_lengths).max()),
        int(numpy.maximum(answers, rows.supervised).max()),
    )
