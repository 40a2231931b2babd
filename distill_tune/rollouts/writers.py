"""Who writes answers: the student, or the teachers that rows follow."""

from collections.abc import Sequence

from distill_tune.errors import UserError
from distill_tune.generation import Completion, Generator, Request
from distill_tune.generation.requests import require_numbers
from distill_tune.teachers import (
    EMA,
    AlignedTeacher,
    EarlierCheckpoint,
    HuggingFace,
    LiveTeacher,
    SeveralTeachers,
    Teacher,
)
from distill_tune.training.distributed import num_ranks, on_all_ranks, rank


def teachers_that_write(teacher: Teacher) -> list[LiveTeacher | HuggingFace]:
    """For ``seq_kd``: each teacher that rows choose from, or the single one.

    Raises:
        UserError: one that cannot write.
    """
    if isinstance(teacher, SeveralTeachers) and teacher.names:
        return [writing for one in teacher.teachers for writing in teachers_that_write(one)]
    if isinstance(teacher, LiveTeacher | HuggingFace):
        return [teacher]
    if isinstance(teacher, AlignedTeacher):
        raise UserError(
            "rollouts.seq_kd=True: the tokenizer of teacher_model is not that of the rows; let it write answers "
            "beforehand (distill-tune run generate) and train on that file"
        )
    if isinstance(teacher, EMA | EarlierCheckpoint):
        return [teacher.teacher]
    raise UserError(
        f"rollouts.seq_kd=True: {type(teacher).__name__} cannot write answers while the student trains; take a "
        "model as teacher, or write them beforehand (distill-tune run generate) and train on that file"
    )


def written_by_all_ranks(generator: Generator, requests: Sequence[Request], of_rows: Sequence[int]) -> list[Completion]:
    """The completions of a step's requests, of which each rank writes its share; all ranks call it, with the same.

    Args:
        of_rows: of each request the number of its row: those of one are written by one rank.

    Raises:
        UserError: the model's logits are no numbers; on all ranks alike.
    """
    if not requests:
        return []
    own = [at for at, row in enumerate(of_rows) if row % num_ranks() == rank()]
    written = generator.generate([requests[at] for at in own])
    found = {at: answer for of_rank in on_all_ranks(list(zip(own, written, strict=True))) for at, answer in of_rank}
    for completion in found.values():
        require_numbers(completion, "rollouts: the model that answers")
    return [found[at] for at in range(len(requests))]
