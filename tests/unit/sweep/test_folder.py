"""A sweep's folder has one recipe and one config; what trials are run with in it."""

import pytest

from distill_tune.disk import release_lock
from distill_tune.errors import UserError
from distill_tune.sweep.folder import claim, require_free, training_overrides
from distill_tune.sweep.trials import Trial, Trials

CONFIG = {"kd_ratio": 0.5, "batch_size": 4, "output_dir": "out", "save_every_n_steps": 5, "optimizer": {"lr": 1e-3}}


@pytest.fixture
def again(tmp_path):
    def claimed(recipe="kd_single_device", keys=("kd_ratio",), varied=("kd_ratio",), **changes):
        try:
            claim(tmp_path, recipe, CONFIG | changes, keys, varied)
        finally:
            release_lock(tmp_path)

    claimed()
    return claimed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kd_ratio": 0.7},
        {"output_dir": "other"},
        {"save_every_n_steps": 1},
        {"optimizer": {"lr": 1e-4}, "varied": ("kd_ratio", "optimizer.lr")},  # which takes its value from kd_ratio
    ],
)
def test_the_same_sweep_goes_on_whatever_varies_and_however_often_it_writes(again, changes):
    again(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 2}, "batch_size 4 -> 2"),
        ({"optimizer": {"lr": 1e-4}}, "optimizer.lr 0.001 -> 0.0001"),
        ({"keep_best": "val_loss"}, "keep_best nothing -> val_loss"),
        ({"keys": ("kd_ratio", "temperature")}, "its trials vary kd_ratio, these kd_ratio, temperature:"),
        ({"recipe": "kd_distributed"}, "recipe kd_single_device -> kd_distributed"),
    ],
)
def test_another_one_is_refused_with_what_differs(again, changes, told):
    with pytest.raises(UserError) as error:
        again(**changes)
    assert told in str(error.value)


def test_two_at_a_time_are_refused(again, tmp_path):
    import fcntl

    with (tmp_path / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another sweep is writing there"):
            again()


def test_where_results_are_written_is_each_trials_own():
    with pytest.raises(UserError, match="evaluation_folder: each trial has its own"):
        require_free(["kd_ratio"], ["evaluation_folder=results"])
    with pytest.raises(UserError, match="evaluation_folder: cannot vary"):
        require_free(["evaluation_folder"], [])


def test_what_a_config_says_itself_is_left_as_it_is(tmp_path):
    trial = Trial(3, {"kd_ratio": "0.5"}, 7)
    assert training_overrides(tmp_path, trial, {}) == [
        "kd_ratio=0.5",
        f'output_dir="{tmp_path}"',
        "resume=auto",
        "keep_last_n=1",
        "seed=7",
    ]
    given = training_overrides(tmp_path, Trial(3, {"seed": "9"}, 0), {"keep_last_n": 3, "resume_from_checkpoint": True})
    assert given == ["seed=9", f'output_dir="{tmp_path}"', "resume=auto", "resume_from_checkpoint=False"]


def test_trials_of_a_folder_are_read_as_they_were_written(tmp_path):
    trials = Trials(tmp_path)
    trial = trials.add({"kd_loss": "{_component_: a.B, x: [1, 2]}"}, 0)
    trial.state, trial.figures, trial.validations = "pruned", {"kl": 0.5}, {10: 2.5}
    trials.write()
    assert list(Trials(tmp_path)) == [trial]
    assert Trials(tmp_path).find({"kd_loss": "{x: [1,2], _component_: a.B}"}, 0) == trial
    assert Trials(tmp_path).find({"kd_loss": "{x: [1,2], _component_: a.B}"}, 1) is None
    (tmp_path / "trials.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="line 1 is no trial"):
        Trials(tmp_path)
