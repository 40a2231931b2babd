"""What a checkpoint holds besides state.json: the tensors and settings that the next step depends on."""

import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig
from torch import nn
from torch.distributed.tensor import DTensor

from distill_tune.counts import counted
from distill_tune.errors import UserError
from distill_tune.models.loading import own_part, sharded
from distill_tune.models.parameters import named_parameters, reshard
from distill_tune.models.tensor_files import read_tensors, shapes_of
from distill_tune.training.device import dtype_name
from distill_tune.training.distributed import num_ranks, rank
from distill_tune.training.state import TrainingState

_FROM_CONFIG = {"lr", "initial_lr", "fused", "foreach"}  # of an optimizer's groups, besides what its component names


class Stateful(Protocol):
    """A teacher that changes during a run."""

    def state(self) -> dict[str, torch.Tensor]: ...
    def restored(self) -> None: ...


def tensors_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, teacher: Stateful
) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that any number of ranks can take up again."""
    for name, parameter in _trained(model).items():
        yield f"student.{name}", parameter.detach()
        for kind, value in optimizer.state.get(parameter, {}).items():
            if _is_common(parameter, value):
                yield f"optimizer.{kind}:{name}", value
    for name, value in teacher.state().items():
        yield f"teacher.{name}", value


def lacking_part(model: nn.Module, optimizer: torch.optim.Optimizer) -> str | None:
    """What a checkpoint of these would lack; None where it has all."""
    trained = {id(parameter) for parameter in _trained(model).values()}
    of_optimizer = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if others := [parameter for parameter in of_optimizer if id(parameter) not in trained]:
        return f"the optimizer has {len(others)} parameters that are none of the model's trained ones"
    return None


def own_part_of_rank(model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    """What is this rank's own: random state; of the optimizer its settings, and state in a form of its own (8 bit).

    As torch.save writes it: the next step changes that state in place, and not each form of it can be copied.
    """
    opaque: dict[str, dict[str, Any]] = {}
    for name, parameter in _trained(model).items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if not _is_common(parameter, value):
                own = own_part(value).detach().cpu() if isinstance(value, torch.Tensor) else value
                opaque.setdefault(name, {})[kind] = own
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    written = io.BytesIO()
    torch.save({"opaque": opaque, "groups": groups, "random": _random_state()}, written)
    return written.getvalue()


def copied(value: torch.Tensor) -> torch.Tensor:
    """On the CPU, sharded as it was."""
    return sharded(value, own_part(value).detach().to("cpu", copy=True).contiguous())


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, component: DictConfig, teacher: Stateful
) -> None:
    """Put a checkpoint's state back into the parts of a run, in place, and say so.

    What the config says of the optimizer holds, also where it says something new: of the optimizer's own settings only
    those that its component does not name come from the checkpoint.

    Args:
        component: the config's optimizer.

    Raises:
        UserError: the checkpoint is damaged, or its run trained other parameters, held them in another dtype, or had
            another teacher.
    """
    saved = shapes_of(folder)
    parameters = _trained(model)
    wanted = {f"student.{name}": list(p.shape) for name, p in parameters.items()}
    if wanted != {name: list(value.shape) for name, value in saved.items() if name.startswith("student.")}:
        raise UserError(f"checkpoint {folder}: was trained with other parameters than this config's model")
    _require_held_in_same_dtype(folder, parameters, saved)
    of_teacher = {f"teacher.{name}": value for name, value in teacher.state().items()}
    if of_teacher.keys() != {name for name in saved if name.startswith("teacher.")}:
        raise UserError(f"checkpoint {folder}: its run had another kind of teacher")
    of_optimizer = {
        name: _like(parameters[name.split(":", 1)[1]], value)
        for name, value in saved.items()
        if name.startswith("optimizer.")
    }
    with torch.no_grad():
        into = {f"student.{name}": value.detach() for name, value in parameters.items()}
        read_tensors(folder, into | of_teacher | of_optimizer)
    teacher.restored()

    part = _read_part(folder)
    states: dict[str, dict[str, Any]] = {name: {} for name in parameters}
    for key, value in of_optimizer.items():
        kind, name = key.removeprefix("optimizer.").split(":", 1)
        states[name][kind] = value
    for name, values in part["opaque"].items():
        for kind, value in values.items():
            states[name][kind] = _sharded_part(parameters[name], value)
    fresh = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    numbers = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(
        {
            "state": {number: states[name] for number, name in enumerate(order) if states[name]},
            "param_groups": [
                {**saved_group, "params": group["params"]}
                for saved_group, group in zip(part["groups"], numbers, strict=True)
            ],
        }
    )
    for group, settings in zip(optimizer.param_groups, fresh, strict=True):
        for key in _FROM_CONFIG | {str(key) for key in component}:
            group.pop(key, None)
            if key in settings:
                group[key] = settings[key]
    if part["random"] is not None:
        torch.set_rng_state(part["random"]["cpu"])
        if "cuda" in part["random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(part["random"]["cuda"])
    print(f"resuming from {folder}")


def _require_held_in_same_dtype(
    folder: Path, parameters: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]
) -> None:
    for name, parameter in parameters.items():
        was = saved[f"student.{name}"].dtype
        if was != parameter.dtype:
            raise UserError(
                f"checkpoint {folder}: {name} was trained in {dtype_name(was)}, this run trains it in "
                f"{dtype_name(parameter.dtype)}; resume with the optimizer and dtype that its run began with, or, "
                "where an older version wrote it, which held what trains in bf16, begin anew in another output_dir"
            )


def load_student(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's trained parameters into the model that they are from.

    Raises:
        UserError: the checkpoint is damaged.
    """
    with torch.no_grad():
        read_tensors(folder, {f"student.{name}": value.detach() for name, value in _trained(model).items()})


def _is_common(parameter: torch.Tensor, value: Any) -> bool:
    """Whether a value of the optimizer's state is a plain tensor: whole, or sharded as its parameter is."""
    if not isinstance(value, torch.Tensor) or type(own_part(value)) not in (torch.Tensor, nn.Parameter):
        return False
    return isinstance(value, DTensor) or not isinstance(parameter, DTensor) or value.numel() == 1


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """By plain names, sharded where the model is: those that the optimizer has."""
    reshard(model)
    return {name: parameter for name, parameter in named_parameters(model) if parameter.requires_grad}


def _like(parameter: torch.Tensor, saved: torch.Tensor) -> torch.Tensor:
    """Room for a saved tensor, sharded as its parameter is where it has the parameter's shape."""
    if not isinstance(parameter, DTensor) or saved.shape != parameter.shape:
        return torch.empty_like(saved, device="cpu" if saved.ndim == 0 else own_part(parameter).device)
    return sharded(parameter, torch.empty_like(own_part(parameter), dtype=saved.dtype))


def _sharded_part(parameter: torch.Tensor, value: Any) -> Any:
    """This rank's own part of a state as the optimizer had it."""
    if not isinstance(value, torch.Tensor) or value.shape != own_part(parameter).shape:
        return value
    return sharded(parameter, value)


def _read_part(folder: Path) -> dict[str, Any]:
    """This rank's own part, or where other ranks wrote the checkpoint, what is the same on all.

    Raises:
        UserError: it cannot be read, or only as many ranks can.
    """
    state = TrainingState.read(folder)
    own = state.num_ranks == num_ranks()
    path = folder / f"rank_{rank() if own else 0}.pt"
    try:
        part = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise UserError(f"checkpoint {folder}: {path.name} cannot be read: {str(error).splitlines()[0]}") from error
    if not own:
        part["random"] = None  # drawn anew
        if part["opaque"]:
            raise UserError(
                f"checkpoint {folder}: this optimizer's state can be taken up by {counted(state.num_ranks, 'process')} "
                f"alone, and {num_ranks()} were started"
            )
    return part


def _random_state() -> dict[str, torch.Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda
