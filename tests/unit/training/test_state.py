"""What a resumed run may have changed, and what it is told."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill_tune.errors import UserError
from distill_tune.training import TrainingState


def test_a_batch_size_that_makes_other_steps_is_told_once_and_by_its_name(capsys):
    state = TrainingState(16, 0, {"sequences a step": 4}, {"batch_size": 4, "epochs": 1})
    state.require_same_config(Path("step_16"), OmegaConf.create({"batch_size": 8, "epochs": 2}), False)
    assert capsys.readouterr().out == "changed since step_16: epochs 1 -> 2\n"
    with pytest.raises(UserError, match=r"\(batch_size, gradient_accumulation_steps, processes\) was 4, is 8"):
        state.require_same_plan(Path("step_16"), {"sequences a step": 8}, False)


def test_which_factor_of_a_step_has_changed_is_told_and_others_may_make_the_same_step():
    def plan(batch_size: int, accumulation: int, processes: int) -> dict[str, object]:
        factors = {"batch_size": batch_size, "gradient_accumulation_steps": accumulation, "processes": processes}
        return {"sequences a step": batch_size * accumulation * processes, "their factors": factors}

    state = TrainingState(16, 0, plan(4, 2, 1), {})
    state.require_same_plan(Path("step_16"), plan(2, 2, 2), False)
    with pytest.raises(UserError, match=r"\n  sequences a step \(batch_size 4 -> 8\) was 8, is 16$"):
        state.require_same_plan(Path("step_16"), plan(8, 2, 1), False)
    told = r"sequences a step \(gradient_accumulation_steps 2 -> 3, processes 1 -> 2\) was 8, is 24$"
    with pytest.raises(UserError, match=told):
        state.require_same_plan(Path("step_16"), plan(4, 3, 2), False)
