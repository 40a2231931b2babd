"""Rows of a config's steps, made in this process, with answers that no model writes."""

from collections.abc import Callable

import pytest
import torch
from fixed_rollouts import FixedRollouts
from omegaconf import OmegaConf

from distill_tune import rollouts, training
from distill_tune.rollouts import step_answers


@pytest.fixture
def rows_of(write_config, tmp_path, monkeypatch) -> Callable[..., rollouts.RowsOfData]:
    """What a recipe makes of a config before it loads a model: ``kd_ratio`` 1, and keys replaced."""
    monkeypatch.setattr(step_answers, "generator_of", lambda model, *others, **more: FixedRollouts())

    def make(settings: dict | None = None, **changes: object):
        rollout = {"_component_": "distill_tune.rollouts.OnPolicy", **(settings or {})}
        cfg = OmegaConf.load(write_config(**{"kd_ratio": 1.0, "rollouts": rollout} | changes))
        cfg |= {key: None for key, value in changes.items() if value is None}
        built = training.build_models(cfg, torch.device("cpu"), needs_weights=False)
        steps = training.plan_steps(cfg, built, cfg.seed)
        return rollouts.build_rows(cfg, built, steps, cfg.seed)

    return make


@pytest.fixture
def begun(rows_of, tmp_path):
    """The same, ready for its first step; nothing is measured, since the models have no weights."""

    def make(settings: dict | None = None, **changes: object):
        rows = rows_of({"log_every_n_steps": 1_000_000} | (settings or {}), **changes)
        rows.begin(rows._of.built.student, torch.device("cpu"), 1, tmp_path)
        return rows

    return make
