"""Schedules are functions of the step."""

import pytest
from omegaconf import OmegaConf

from distill_tune.errors import UserError
from distill_tune.training import Cosine, Exponential, Linear, Schedules


def values(schedule, steps=range(12), steps_per_epoch=3, total=12, name="weight"):
    return [Schedules(steps_per_epoch, total, {name: schedule}).at(step)[name] for step in steps]


def test_a_guides_formula():
    schedule = OmegaConf.create(
        {"_component_": "distill_tune.training.Linear", "start": 3.0, "change": -0.5, "by": "epoch", "floor": 1.0}
    )
    found = values(schedule, range(0, 24), steps_per_epoch=3, total=24, name="temperature")
    assert found == [max(3.0 - 0.5 * (step // 3), 1.0) for step in range(24)]


def test_linear_reaches_its_end_and_stays():
    assert values(Linear(0.0, end=1.0, over=4)) == [0, 0.25, 0.5, 0.75] + [1] * 8
    assert values(Linear(1.0, end=0.0, hold=6))[5:] == pytest.approx([1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_cosine_and_exponential():
    cosine = values(Cosine(2.0, end=1.0, over=8))
    assert cosine[0] == 2
    assert cosine[4] == pytest.approx(1.5)
    assert cosine[8:] == pytest.approx([1] * 4)
    assert values(Exponential(8.0, factor=0.5, floor=3.0, hold=1))[:5] == [8, 8, 4, 3, 3]
    assert values(Exponential(1.0, factor=0.5, by="epoch")) == [0.5 ** (step // 3) for step in range(12)]


def test_a_number_is_a_number():
    assert values(0.3) == [0.3] * 12


@pytest.mark.parametrize(
    ("name", "schedule", "told"),
    [
        ("kd_ratio", Linear(0.5, change=0.1), "kd_ratio: its schedule gives 1.1 at step 6"),
        ("temperature", Linear(3.0, change=-0.5), "temperature: its schedule gives 0 at step 6"),
        ("hidden_loss_weight", Linear(1.0, end=-1.0), "hidden_loss_weight: its schedule gives -"),
    ],
)
def test_a_schedule_that_leaves_its_range_is_refused_before_it_runs(name, schedule, told):
    with pytest.raises(UserError, match=told):
        Schedules(3, 12, {name: schedule})


def test_wrong_arguments_are_told_with_the_key():
    wrong = OmegaConf.create({"_component_": "distill_tune.training.Linear", "start": 1.0})
    with pytest.raises(UserError, match=r"kd_ratio: distill_tune\.training\.Linear: change or end: give one of them"):
        Schedules(3, 12, {"kd_ratio": wrong})
    for make in (lambda: Linear(1.0, end=0.0, by="day"), lambda: Linear(1.0, end=0.0, hold=-1)):
        with pytest.raises(ValueError, match="must be"):
            make()
