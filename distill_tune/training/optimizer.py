"""Optimizer, learning-rate schedule and profiler from their components."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.distributed.tensor import DTensor

from distill_tune.config.components import build, find_component, instantiate
from distill_tune.errors import UserError, one_line
from distill_tune.models.adapters import adapter_names
from distill_tune.training.warm_up import with_warm_up_in_steps

_FUSED_WHERE_SHARDED = ("torch.optim.Adam", "torch.optim.AdamW")  # PyTorch has no rule for the others


def build_optimizer(component: DictConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """PyTorch's own optimizers run as one fused kernel where the config does not say otherwise.

    Raises:
        UserError: the optimizer refuses its arguments.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    fused = {}
    if not {"fused", "foreach", "differentiable"} & set(component) and _can_be_fused(component["_component_"], trained):
        fused["fused"] = True
    try:
        return instantiate(component, trained, **fused)
    except (TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
        which = _argument_in(component, str(error))
        raise UserError(f"optimizer{which}: {component['_component_']}: {one_line(error)}") from error


def _argument_in(component: DictConfig, told: str) -> str:
    """``.lr=-1`` of "Invalid learning rate: -1": the one argument whose value a message ends with."""
    value = told.rpartition(": ")[2]
    found = [key for key, held in component.items() if value in map(str, held if OmegaConf.is_list(held) else [held])]
    return f".{found[0]}={component[found[0]]}" if len(found) == 1 else ""


def _can_be_fused(name: str, parameters: list[nn.Parameter]) -> bool:
    if not name.startswith("torch.optim."):
        return False
    if any(isinstance(p, DTensor) for p in parameters) and name not in _FUSED_WHERE_SHARDED:
        return False
    takes_it = "fused" in inspect.signature(find_component(name)).parameters
    return takes_it and all(p.device.type in ("cpu", "cuda", "mps") and p.is_floating_point() for p in parameters)


def check_optimizer(component: DictConfig) -> torch.optim.Optimizer:
    """Build an optimizer for one parameter: its own checks, before a model loads.

    Raises:
        UserError: it refuses its arguments, is no optimizer, or cannot take a step without being told more.
    """
    name = component["_component_"]
    target = find_component(name)
    if inspect.isclass(target) and not issubclass(target, torch.optim.Optimizer):
        raise UserError(f"optimizer={name}: is no optimizer; name one, such as torch.optim.AdamW")
    optimizer = build_optimizer(component, [nn.Parameter(torch.zeros(1))])
    if more := _asked_for(optimizer.step):
        raise UserError(f"optimizer={name}: has to be told {more} at each step; take one of gradients alone")
    return optimizer


def _asked_for(step: Callable[..., Any]) -> str:
    needed = [p.name for p in inspect.signature(step).parameters.values() if p.default is p.empty]
    return ", ".join(name for name in needed if name not in ("args", "kwargs"))


def check_lr_scheduler(component: DictConfig | None, optimizer: DictConfig, num_training_steps: int) -> None:
    """Take a schedule through all steps of a run, with an optimizer of one parameter, before a model loads.

    Raises:
        UserError: it refuses its arguments or a step, or cannot be stepped without being told more.
    """
    if component is not None:
        build_lr_scheduler(component, check_optimizer(optimizer), num_training_steps, done=num_training_steps)


def dtype_to_train_in(component: DictConfig, dtype: torch.dtype, model: nn.Module) -> torch.dtype:
    """What parameters that train are held in, and with them gradients and the optimizer's state: float32.

    bf16 keeps 8 bits of a number. AdamW's steps of 2e-5 leave every weight above 0.008 as it is, and a second moment,
    which loses a thousandth a step, never becomes smaller. Only an optimizer that rounds up or down by chance, in
    proportion to what is cut off, moves such weights as far as it should: they are held in ``dtype`` where its
    component says ``bf16_stochastic_round: True`` (torchao.optim).

    Args:
        component: the config's optimizer.
        dtype: that the model computes in.
        model: whose adapters, if it has any, are all that trains.

    Raises:
        UserError: stochastic rounding where nothing is held in bf16.
    """
    if not component.get("bf16_stochastic_round"):
        return torch.float32
    if dtype != torch.bfloat16:
        raise UserError("optimizer.bf16_stochastic_round=True: needs dtype=bf16; leave it out")
    if adapter_names(model):
        raise UserError(
            "optimizer.bf16_stochastic_round=True: adapters are held in fp32, which costs little; leave it out"
        )
    return dtype


def build_lr_scheduler(
    component: DictConfig | None, optimizer: torch.optim.Optimizer, num_training_steps: int, done: int = 0
) -> torch.optim.lr_scheduler.LRScheduler:
    """A schedule stepped once an optimizer step; without a component the learning rate stays as it is.

    torchtune's schedules are told ``num_training_steps``; those of torch.optim do not ask. A ``num_warmup_steps`` below
    1 is a share of them. A schedule that begins with a rate of zero, as torchtune's warm-ups do, is begun at its second
    value and made a step longer: no step is without effect, and the first of 100 has a hundredth of the rate.

    Args:
        done: steps taken already. The schedule is taken through them, so that it is what the config says also where
            that has changed since.

    Raises:
        UserError: the schedule refuses its arguments or one of those steps, or cannot be stepped so.
    """
    if component is None:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    name = component["_component_"]
    component = with_warm_up_in_steps(component, num_training_steps)
    takes_length = "num_training_steps" in inspect.signature(find_component(name)).parameters

    def begun(num_steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        return instantiate(component, optimizer, **({"num_training_steps": num_steps} if takes_length else {}))

    try:
        scheduler = begun(num_training_steps)
        if more := _asked_for(scheduler.step):
            raise UserError(f"lr_scheduler: {name}: has to be told {more} at each step; take one of steps alone")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has not stepped
            if all(group["lr"] == 0 for group in optimizer.param_groups):
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"]
                scheduler = begun(num_training_steps + 1)
                scheduler.step()
            for _ in range(done):
                scheduler.step()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"lr_scheduler: {name}: {one_line(error)}") from error
    return scheduler


def build_profiler(component: DictConfig | None) -> Any:
    """A context with ``step()``: torchtune's profiler where it is enabled, else nothing.

    Raises:
        UserError: it refuses its arguments.
    """
    if component is None or not component.get("enabled", True):
        return _NoProfiler()
    return build("profiler", component, enabled=True)[0]


class _NoProfiler(contextlib.nullcontext):
    def step(self) -> None:
        return None
