"""A teacher that is lost while a run goes on."""

from collections.abc import Sequence

from distill_tune.data.batch import Batch
from distill_tune.errors import UserError
from distill_tune.teachers.teacher import Teacher
from distill_tune.training.distributed import on_all_ranks


def is_lost(teacher: Teacher, batches: Sequence[Batch]) -> str | None:
    """Wait for a teacher's word on this rank's batches; why it will not come, where it will not, alike on all ranks."""
    if not teacher.may_be_lost:
        return None
    return next((reason for reason in on_all_ranks(teacher.lost(batches)) if reason), None)


def lost_teacher(step: int, reason: str) -> UserError:
    return UserError(
        f"stopped after step {step}: the teacher is lost ({reason}); once it is served again, resume=auto goes on"
    )
