"""Whether what a config names as a loss can be called as one, before a model loads."""

import inspect
from typing import Any

from omegaconf import DictConfig
from torch import nn

from distill_tune.config.components import build, find_component
from distill_tune.config.trust import is_known, may_be_called
from distill_tune.errors import CollectedFaults, UserError
from distill_tune.losses import Divergence, ForwardKL, TokenWeight

# What the head calls each with, and what there is.
_CALLED_WITH = {
    "loss": (("student", "targets", "memory"), "a cross-entropy: distill_tune.losses.CrossEntropy"),
    "kd_loss": (("student", "teacher"), "a divergence of two distributions, such as distill_tune.losses.ForwardKL"),
    "kd_token_weight": (("teacher", "targets"), "a weight, such as distill_tune.losses.TeacherCertainty"),
}

_BETWEEN_TOKENIZERS = ("student", "teacher", "targets", "word")


def check_losses(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: a class of a known package is called in another way; of other code a run tells it itself.
    """
    faults = CollectedFaults("losses")
    for key, (arguments, what) in _CALLED_WITH.items():
        name = (cfg.get(key) or {}).get("_component_")
        if name and is_known(name):
            loss = find_component(name)
            arguments = _BETWEEN_TOKENIZERS if getattr(loss, "aligned", False) else arguments
            if _takes(loss, arguments):
                continue
            with faults:
                called = ", ".join(arguments)
                raise UserError(f"{key}={name}: is not called with {called}; needed is {what}")
    faults.tell()


def loss_of(cfg: DictConfig) -> tuple[Divergence, TokenWeight | None, float | None] | None:
    """Divergence, token weight and temperature of a config, the last None where it changes; None of losses from
    elsewhere, which tell themselves what they cannot be served with."""
    if not (may_be_called(cfg.get("kd_loss")) and may_be_called(cfg.get("kd_token_weight"))):
        return None
    temperature = cfg.get("temperature", 1.0)
    return (
        build("kd_loss", cfg.get("kd_loss"), ForwardKL()),
        build("kd_token_weight", cfg.get("kd_token_weight")),
        float(temperature) if isinstance(temperature, int | float) else None,
    )


def _takes(loss: Any, arguments: tuple[str, ...]) -> bool:
    if not inspect.isclass(loss):  # what it makes is not known
        return True
    call = (
        loss.forward
        if issubclass(loss, nn.Module)
        else next((vars(of)["__call__"] for of in loss.__mro__ if "__call__" in vars(of)), None)
    )
    if call is None:
        return False
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # written in C: not known
        return True
    try:
        signature.bind(loss, *arguments)
    except TypeError:
        return False
    return True
