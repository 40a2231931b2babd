"""Training state to resume from: checkpoints/step_N/."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from distill_tune.errors import UserError
from distill_tune.models.loading import own_part, sharded_like
from distill_tune.models.parameters import named_parameters
from distill_tune.training.distributed import is_main_process, num_ranks, on_all_ranks, rank
from distill_tune.training.full_weights import full_weights


class Stateful(Protocol):
    """A teacher that changes during a run."""

    def state(self) -> Iterator[tuple[str, torch.Tensor]]: ...
    def load_state(self, state: dict[str, torch.Tensor]) -> None: ...


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """Where a run stands, besides what its parts hold; state.json of a checkpoint.

    Attributes:
        step: optimizer steps taken; the next step's rows follow from it.
        seed: the seed in use.
        plan: what decides which rows a step has; a resumed run must have the same.
    """

    step: int
    seed: int
    plan: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "TrainingState":
        """
        Raises:
            UserError: no state.json there, or a broken one.
        """
        try:
            return cls(**json.loads((folder / "state.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"checkpoint {folder}: state.json cannot be read: {error}") from error

    def require_same_plan(self, folder: Path, plan: Mapping[str, Any]) -> None:
        """
        Raises:
            UserError: the data or the batch settings are not those that this state was saved with.
        """
        differ = [
            f"{key} was {self.plan.get(key)}, is {value}" for key, value in plan.items() if self.plan.get(key) != value
        ]
        if differ:
            raise UserError(f"checkpoint {folder}: this config takes other steps: {'; '.join(differ)}")


def save_training_state(
    folder: Path,
    state: TrainingState,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    teacher: Stateful,
) -> None:
    """Write beside, then rename: a folder of this name is complete.

    Only trained parameters are kept; frozen ones come from the base checkpoint again. Every rank calls it, the main
    process writes, whole tensors: any number of ranks may go on from them.
    """
    trained = dict(full_weights(model, only=[name for name, p in named_parameters(model) if p.requires_grad]))
    optimizer_state = tree_map(_whole_on_cpu, optimizer.state_dict())
    of_teacher = dict(teacher.state())
    random_states = on_all_ranks(_random_state())
    if is_main_process():
        parts = {"optimizer": optimizer_state, "lr_scheduler": lr_scheduler.state_dict(), "random": random_states}
        _write(folder, state, {"trained": trained, "teacher": of_teacher}, parts)


def _write(
    folder: Path, state: TrainingState, weights: Mapping[str, dict[str, torch.Tensor]], parts: dict[str, Any]
) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for kind, tensors in weights.items():
        if tensors or kind == "trained":
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial / f"{kind}.safetensors")
    torch.save(parts, partial / "parts.pt")
    (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    teacher: Stateful,
) -> None:
    """Put a checkpoint's state back into the parts of a run, in place.

    Raises:
        UserError: the checkpoint is damaged, or its run trained other parameters, or had another teacher.
    """
    of_teacher_file = folder / "teacher.safetensors"
    try:
        trained = load_file(folder / "trained.safetensors")
        of_teacher = load_file(of_teacher_file) if of_teacher_file.is_file() else {}
        parts = torch.load(folder / "parts.pt", map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read: {str(error).splitlines()[0]}") from error
    parameters = {name: p for name, p in named_parameters(model) if p.requires_grad}
    if {name: p.shape for name, p in parameters.items()} != {name: w.shape for name, w in trained.items()}:
        raise UserError(f"checkpoint {folder}: was trained with other parameters than this config's model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            own_part(parameter).copy_(own_part(parameter, trained[name]))
    try:
        teacher.load_state(of_teacher)
    except KeyError as error:
        raise UserError(f"checkpoint {folder}: has no {error.args[0]} of the teacher's; its run had another") from error
    optimizer.load_state_dict(_spread(parts["optimizer"], optimizer))
    lr_scheduler.load_state_dict(parts["lr_scheduler"])
    if len(parts["random"]) == num_ranks():  # another number of ranks draws anew
        random_state = parts["random"][rank()]
        torch.set_rng_state(random_state["cpu"])
        if "cuda" in random_state and torch.cuda.is_available():
            torch.cuda.set_rng_state(random_state["cuda"])


def _whole_on_cpu(value: Any) -> Any:
    """A tensor of the optimizer's state, gathered; dropped where this is not the process that writes."""
    if not isinstance(value, DTensor):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if is_main_process() else None


def _spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's saved state with this rank's part of what belongs to sharded parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    spread = {
        index: {name: sharded_like(parameters[index], value) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    return {**state, "state": spread}


def _random_state() -> dict[str, torch.Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda
