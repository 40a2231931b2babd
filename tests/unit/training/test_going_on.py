"""A disk that is full once training is done: nothing that was learned is lost, and the message says so."""

import errno

import pytest

from distill_tune.errors import UserError
from distill_tune.training.going_on import told_where_to_go_on


@pytest.mark.parametrize(
    ("there", "told"), [(["step_3", "step_16", ".step_20.partial", "step_18.superseded"], "step_16 is whole"), ([], "")]
)
def test_it_names_the_newest_checkpoint_and_how_to_go_on(tmp_path, there, told):
    for name in there:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with pytest.raises(UserError) as raised, told_where_to_go_on(tmp_path / "model"):
        raise OSError(errno.ENOSPC, "No space left on device")
    message = str(raised.value)
    assert message.startswith(f"{tmp_path}/model: could not be written after the last step: No space left on device")
    assert told in message and ("resume=auto goes on from there" in message) == bool(there)
