"""A warm-up is so many steps or a share of them, and is told where the run is too short for it."""

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import training
from distill_tune.config.components import check_components
from distill_tune.config.files import configs_folder
from distill_tune.config.load import load_config
from distill_tune.config.values import check_values

COSINE = "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup"


def rates(steps, done=0, **arguments):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    component = OmegaConf.create({"_component_": COSINE, **arguments})
    scheduler = training.build_lr_scheduler(component, optimizer, steps, done=done)
    found = []
    for _ in range(steps - done):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("share", "steps", "number"), [(0.03, 100, 3), (0.1, 29, 2), (0.03, 20, 0), (0.5, 7, 3)])
def test_a_number_below_one_is_a_share_of_the_runs_steps(share, steps, number):
    assert rates(steps, num_warmup_steps=share) == rates(steps, num_warmup_steps=number)
    assert max(rates(steps, num_warmup_steps=share)) == 1.0


def test_a_share_is_the_same_after_a_resume():
    assert rates(20, done=7, num_warmup_steps=0.5) == rates(20, num_warmup_steps=0.5)[7:]


def config(**scheduler):
    optimizer = {"_component_": "torch.optim.AdamW", "lr": 1e-3}
    return OmegaConf.create(
        {"kd_ratio": 0, "optimizer": optimizer, "lr_scheduler": {"_component_": COSINE, **scheduler}}
    )


@pytest.mark.parametrize("steps", [99, 4])
def test_a_warm_up_that_is_longer_than_the_run_is_told(steps):
    (told,) = training.schedule_remarks(config(num_warmup_steps=100), steps)
    assert told.startswith(
        f"lr_scheduler.num_warmup_steps=100: the run has {steps} steps, so the learning rate never reaches "
        "optimizer.lr=0.001; "
    )
    assert max(rates(steps, num_warmup_steps=100)) < 1.0


@pytest.mark.parametrize("number", [100, 0, 0.9])
def test_a_shorter_one_is_not(number):
    assert training.schedule_remarks(config(num_warmup_steps=number), 100) == []
    assert training.schedule_remarks(OmegaConf.create({"lr_scheduler": None}), 100) == []


def test_a_share_is_a_valid_value_and_what_is_neither_is_refused():
    assert check_components(config(num_warmup_steps=0.03)) == check_values(config(num_warmup_steps=0.03)) == []
    for value in (1.5, -1, "3%", True):
        (fault,) = (told for told in check_values(config(num_warmup_steps=value)) if "warmup" in told)
        assert fault == (
            f"lr_scheduler.num_warmup_steps={value}: must be a whole number of steps, or a share of the run's, below 1"
        )


def test_every_shipped_warm_up_is_a_share():
    found = [load_config(path, []).get("lr_scheduler") for path in configs_folder().rglob("*.yaml")]
    shares = [scheduler.num_warmup_steps for scheduler in found if scheduler is not None]
    assert len(shares) > 50
    assert all(0 < share < 0.1 for share in shares)
