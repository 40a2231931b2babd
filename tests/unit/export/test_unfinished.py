"""Checkpoints whose student is not made."""

import pytest

from distill_tune.errors import UserError
from distill_tune.export.unfinished import checkpoint_at, write_student
from distill_tune.training import TrainingState

OURS = {"_component_": "distill_tune.models.from_hf", "path": "/nowhere"}


@pytest.mark.parametrize(("key", "name"), [("model", "mine.build"), ("tokenizer", "os.system")])
def test_code_of_other_packages_is_not_run(tmp_path, key, name):
    config = {"model": OURS, "tokenizer": OURS, "dtype": "fp32"} | {key: {"_component_": name}}
    TrainingState(step=1, seed=0, plan={}, config=config).write(tmp_path)
    with pytest.raises(UserError, match=f"{key} of its config is code of another package, which is not run here"):
        write_student(tmp_path, tmp_path / "student", as_adapter=False)


def test_what_is_set_aside_or_half_written_is_none(tmp_path):
    for name in ("step_3.superseded", ".step_4.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert checkpoint_at(tmp_path) is None
