"""Training state to resume from: checkpoints/step_N/."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from distill_tune.errors import UserError


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
) -> None:
    """Write beside, then rename: a folder of this name is complete.

    Only trained parameters are kept; frozen ones come from the base checkpoint again.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(_trained(model), partial / "trained.safetensors")
    parts = {"optimizer": optimizer.state_dict(), "lr_scheduler": lr_scheduler.state_dict(), "random": _random_state()}
    torch.save(parts, partial / "parts.pt")
    (partial / "state.json").write_text(json.dumps(dataclasses.asdict(state), indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def load_training_state(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """Put a checkpoint's state back into the parts of a run, in place.

    Raises:
        UserError: the checkpoint is damaged, or its run trained other parameters.
    """
    try:
        trained = load_file(folder / "trained.safetensors")
        parts = torch.load(folder / "parts.pt", map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"checkpoint {folder}: cannot be read: {str(error).splitlines()[0]}") from error
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {name: p.shape for name, p in parameters.items()} != {name: w.shape for name, w in trained.items()}:
        raise UserError(f"checkpoint {folder}: was trained with other parameters than this config's model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(trained[name])
    optimizer.load_state_dict(parts["optimizer"])
    lr_scheduler.load_state_dict(parts["lr_scheduler"])
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"]["cuda"])


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _random_state() -> dict[str, torch.Tensor]:
    cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
    return {"cpu": torch.get_rng_state()} | cuda
