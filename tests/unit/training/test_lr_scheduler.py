"""A schedule is tried with the run's own number of steps, and no step of it is without effect."""

import sys

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import training
from distill_tune.errors import UserError

COSINE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"
SGD = OmegaConf.create({"_component_": "torch.optim.SGD", "lr": 1.0})


def wsd(optimizer, num_training_steps, num_warmup_steps=2):
    """Warm-up, stable, decay over the last quarter."""
    if num_warmup_steps >= num_training_steps:
        raise ValueError("num_warmup_steps must be below num_training_steps")
    decay = int(num_training_steps * 0.25)
    slope = 1 / decay

    def rate(step):
        return min(1.0, (step + 1) / num_warmup_steps, (num_training_steps - step) * slope)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def asserting(optimizer, num_training_steps):
    assert num_training_steps > 8
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def too_short(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)


@pytest.fixture
def check(monkeypatch):
    monkeypatch.setitem(sys.modules, "sched", sys.modules[__name__])

    def go(name, steps, **arguments):
        training.check_lr_scheduler(OmegaConf.create({"_component_": name, **arguments}), SGD, steps)

    return go


def test_it_is_tried_with_the_runs_steps(check):
    check("sched.wsd", 12)
    check("sched.asserting", 12)
    check("sched.too_short", 10)


@pytest.mark.parametrize(
    ("name", "steps", "told"),
    [
        ("sched.wsd", 2, "sched.wsd: num_warmup_steps must be below num_training_steps"),
        ("sched.wsd", 3, "sched.wsd: division by zero"),
        ("sched.asserting", 4, "sched.asserting: assert"),
        ("sched.too_short", 11, "sched.too_short: Tried to step 11 times"),
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", 4, "ReduceLROnPlateau: has to be told metrics at each step"),
    ],
)
def test_what_fails_in_the_run_is_told_before_it(check, name, steps, told):
    with pytest.raises(UserError, match=told):
        check(name, steps)


def rates(steps, **component):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = training.build_lr_scheduler(OmegaConf.create(component), optimizer, steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_a_warm_up_begins_with_its_first_part_and_no_step_has_a_rate_of_zero():
    found = rates(20, _component_=COSINE, num_warmup_steps=4)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[4] < 1
    assert 0 < found[-1] < 0.05


def test_one_that_begins_above_zero_stays_as_it_is():
    found = rates(4, _component_=COSINE, num_warmup_steps=0)
    assert found == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5])
    assert rates(3, _component_="torch.optim.lr_scheduler.StepLR", step_size=1, gamma=0.5) == [1.0, 0.5, 0.25]
