"""What of a config with rollouts can be found wrong before a model loads."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.generation import Sampling
from distill_tune.generation.ends import ends_of, require_same_ends
from distill_tune.rollouts.on_policy import OnPolicy
from distill_tune.rollouts.prompts import prompt_lengths
from distill_tune.rollouts.writers import teachers_that_write
from distill_tune.teachers import HuggingFace, LiveTeacher
from distill_tune.training.preparation import Models, Steps
from distill_tune.training.schedules import Schedules

_SHARE = "rollouts.lmbda"


@dataclasses.dataclass(frozen=True)
class Checked:
    """
    Attributes:
        ends: the tokens at which an answer ends.
        most_tokens: of a micro-batch of several rows, as a plan's ``limits`` have them.
        longest, longest_of_teacher, most_learned: tokens of a row with its answer, as student and teacher read it, and
            those of the answer.
        writing_teachers: each that rows choose from, where teachers write answers.
    """

    settings: OnPolicy
    built: Models
    steps: Steps
    shares: Schedules
    ends: frozenset[int]
    most_tokens: Sequence[int]
    longest: int
    longest_of_teacher: int
    most_learned: int
    writing_teachers: Sequence[LiveTeacher | HuggingFace]

    @property
    def sampling(self) -> Sampling:
        assert isinstance(self.settings.sampling, Sampling)
        return self.settings.sampling

    def share_at(self, step: int) -> float:
        """Of the rows of the step that follows ``step`` steps, those that the student answers."""
        return self.shares.at(step)[_SHARE]

    def room(self, prompt: int) -> int:
        """Tokens of an answer to a prompt of so many."""
        return min(self.sampling.max_new_tokens, self.built.student.max_seq_len - prompt)


def check_rollouts(
    settings: OnPolicy, built: Models, steps: Steps, batch_size: int | None, max_tokens_per_batch: int | None
) -> Checked:
    """
    Raises:
        UserError: a teacher that cannot judge or write such answers, or ends them otherwise; a loss that would teach
            the student its own answers as if they were right; a row without a prompt, one that has no answer and needs
            it, or one that a model cannot read with an answer behind it.
    """
    shares = Schedules(steps.steps_per_epoch, steps.total_steps, {_SHARE: settings.lmbda})
    every = range(0, steps.total_steps, max(1, steps.total_steps // 1000))
    of_steps = [(shares.at(step)[_SHARE], steps.schedules.at(step)["kd_ratio"], step) for step in every]
    for share, kd_ratio, step in of_steps:
        if share > 0 and kd_ratio < 1:
            raise UserError(
                f"rollouts: kd_ratio is {kd_ratio:g} at step {step}: cross-entropy would teach the student its own "
                "answers as if they were right; set kd_ratio=1 (rollouts.lmbda leaves the data its share)"
            )
    if not built.teacher.answers_new_rows:
        raise UserError(
            "rollouts: teacher_model has records of the data's answers alone, and none of those that are written while "
            "the student trains; take the teacher itself, or distill_tune.teachers.Served"
        )
    writing = teachers_that_write(built.teacher) if settings.seq_kd else []
    need_answers = not settings.seq_kd and min(share for share, *_ in of_steps) < 1
    max_new_tokens = settings.sampling.max_new_tokens  # type: ignore[union-attr]
    longest, longest_of_teacher, most_learned = 0, 0, 0
    for rows in steps.plan.datasets:
        prompts = prompt_lengths(rows)
        _require_prompts(rows, prompts, built.student.max_seq_len, need_answers)
        answers = numpy.minimum(max_new_tokens, built.student.max_seq_len - prompts)
        of_teacher = prompts if rows.teacher is None else prompt_lengths(rows.teacher)
        as_teacher_reads = rows.lengths if rows.teacher is None else rows.teacher.lengths
        longest = max(longest, int((prompts + answers).max()), int(rows.lengths.max()))
        longest_of_teacher = max(longest_of_teacher, int((of_teacher + answers).max()), int(as_teacher_reads.max()))
        most_learned = max(most_learned, int(answers.max()), int(rows.supervised.max()))
    try:
        built.teacher.require_rows(longest_of_teacher, steps.plan.used_tokens)
    except UserError as error:
        raise UserError(
            f"rollouts.sampling.max_new_tokens={max_new_tokens}: lower it, or shorten prompts: with an answer of so "
            f"many tokens, {str(error).partition(';')[0]}"
        ) from error
    if max_tokens_per_batch is not None and longest > max_tokens_per_batch:
        raise UserError(
            f"max_tokens_per_batch={max_tokens_per_batch}: a prompt with an answer of "
            f"rollouts.sampling.max_new_tokens={max_new_tokens} may have {longest} tokens; raise the one or lower the "
            "other"
        )
    if max_tokens_per_batch is None:
        most = [(batch_size or 1) * tokens for tokens in (longest, longest_of_teacher, most_learned)]
    else:
        most = [max_tokens_per_batch, max(max_tokens_per_batch, longest_of_teacher), max_tokens_per_batch]
    folder, vocab_size = built.student_checkpoint.folder, models.output_head(built.student).vocab_size
    ends = ends_of(built.tokenizer, folder, vocab_size)
    if not ends:
        raise UserError("rollouts: neither the tokenizer nor the student's folder names a token that ends an answer")
    require_same_ends(built.tokenizer, folder, built.teacher.folders, vocab_size)
    return Checked(settings, built, steps, shares, ends, most, longest, longest_of_teacher, most_learned, writing)


def _require_prompts(rows: Any, prompts: numpy.ndarray, max_seq_len: int, need_answers: bool) -> None:
    def first(found: numpy.ndarray) -> str | None:
        return rows.origin(int(found.nonzero()[0][0])) if found.any() else None

    if row := first(prompts == 0):
        raise UserError(
            f"rollouts: {row} has no prompt before its answer: all of it is learned; take rows with questions, without "
            "train_on_input"
        )
    if row := first(prompts >= max_seq_len):
        raise UserError(
            f"rollouts: {row} has a prompt that leaves no room for an answer: the model reads {max_seq_len}"
        )
    if need_answers and (row := first(rows.supervised == 0)):
        raise UserError(
            f"rollouts: {row} has no answer, and with rollouts.lmbda below 1 some rows are learned as they are; set "
            "rollouts.lmbda=1, or rollouts.seq_kd=True, which has the teacher write those"
        )
