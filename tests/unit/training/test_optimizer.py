"""The optimizer that a config names, on what trains."""

import torch
from omegaconf import OmegaConf

from distill_tune import models, training


def test_the_second_moment_of_what_trains_under_bf16_falls_with_the_gradient():
    """In bf16 a thousandth less of it would be rounded to what it was."""
    model = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    component = OmegaConf.create({"_component_": "torch.optim.AdamW", "lr": 2e-5})
    trained_in = training.dtype_to_train_in(component, torch.bfloat16, model)
    models.freeze_all_but_adapters(model, trained_in)
    optimizer = training.build_optimizer(component, model.parameters())
    generator = torch.Generator().manual_seed(0)
    expected = 0.0
    for steps, size in ((300, 1.0), (3000, 0.1)):
        for _ in range(steps):
            model.weight.grad = torch.randn(64, 64, generator=generator).mul_(size).to(model.weight.dtype)
            optimizer.step()
        expected = 0.999**steps * expected + (1 - 0.999**steps) * size**2
    found = optimizer.state[model.weight]["exp_avg_sq"]
    assert found.dtype == torch.float32
    assert abs(expected - 0.0224) < 1e-4
    assert abs(found.mean().item() / expected - 1) < 0.02
