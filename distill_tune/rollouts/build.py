"""The rows of a run's steps, as its config has them."""

from omegaconf import DictConfig

from distill_tune.config.components import build
from distill_tune.errors import UserError
from distill_tune.rollouts.checks import check_rollouts
from distill_tune.rollouts.on_policy import OnPolicy
from distill_tune.rollouts.rows_on_policy import RowsOnPolicy
from distill_tune.rollouts.step_rows import RowsOfData
from distill_tune.training.preparation import Models, Steps


def build_rows(cfg: DictConfig, built: Models, steps: Steps, seed: int) -> RowsOfData | RowsOnPolicy:
    """The data's rows as they are, or, with ``rollouts``, such that student or teacher answer anew.

    Raises:
        UserError: ``rollouts`` does not fit what there is; see :func:`check_rollouts`.
    """
    settings = build("rollouts", cfg.get("rollouts"))
    if settings is None and built.teacher.tokens_of_student:
        raise UserError(
            f"teacher_model.k_of_student={built.teacher.tokens_of_student}: is for rows that the student writes "
            "(rollouts); leave it out"
        )
    if settings is None:
        return RowsOfData(steps, built.teacher)
    if not isinstance(settings, OnPolicy):
        raise UserError(f"rollouts: {cfg.rollouts['_component_']}: must make a distill_tune.rollouts.OnPolicy")
    max_tokens = cfg.get("max_tokens_per_batch") if cfg.batch_size is None else None
    return RowsOnPolicy(check_rollouts(settings, built, steps, cfg.batch_size, max_tokens), seed)
