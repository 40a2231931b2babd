"""The student of a checkpoint: of a run that was stopped, that still goes on, or as it was at an earlier step."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from distill_tune import models, qat, training
from distill_tune.config.components import build
from distill_tune.config.trust import may_be_called
from distill_tune.disk import damage
from distill_tune.errors import UserError

_STATE = "state.json"


def checkpoint_at(path: Path) -> Path | None:
    """The checkpoint that a path means: itself, or of a run's output_dir the newest that is whole; None without any.

    Raises:
        UserError: it is damaged, or all of the run's are.
    """
    if (path / _STATE).is_file():
        there = [path]
    else:
        steps = [folder for folder in path.glob("checkpoints/step_*") if folder.name[5:].isdigit()]
        there = sorted(steps, key=lambda folder: int(folder.name[5:]), reverse=True)
    found = {}
    for folder in there:
        if (fault := damage(folder)) is None:
            return folder
        found[folder] = fault
    if found:
        raise UserError(f"export {path}: {'; '.join(f'{folder}: {fault}' for folder, fault in found.items())}")
    return None


def write_student(checkpoint: Path, folder: Path, as_adapter: bool) -> Path:
    """What the run would leave if it ended with a checkpoint, as it writes it: model/, its adapters merged.

    Args:
        folder: in which it is put.
        as_adapter: adapter/ in its place.

    Returns:
        Where it lies.

    Raises:
        UserError: the checkpoint, or the model that its run began with, cannot be read; they are of other packages'
            code; there is no adapter.
    """
    cfg: Any = OmegaConf.create(dict(training.TrainingState.read(checkpoint).config))
    for key in ("model", "tokenizer", "quantizer"):
        if not may_be_called(cfg.get(key)):
            raise UserError(
                f"export {checkpoint}: {key} of its config is code of another package, which is not run here; the "
                "run's own command with resume=auto makes the model"
            )
    device = torch.device("cpu")
    dtype = training.find_dtype(cfg.dtype, device)
    base = models.open_checkpoint("model", cfg.model, cfg.get("checkpointer"))
    student = models.checked_on_meta("model", cfg.model, base, dtype)
    if as_adapter and models.lora_shape(student) is None:
        raise UserError(
            f"export {checkpoint}: its run trains every parameter: there is no adapter; take --to hf, or a run that "
            "trains with LoRA"
        )
    models.freeze_all_but_adapters(student, training.dtype_to_train_in(cfg.optimizer, dtype, student))
    models.load_weights(student, base, device)
    training.load_student(checkpoint, student)
    tokenizer = build("tokenizer", cfg.tokenizer)
    if (scheme := build("quantizer", cfg.get("quantizer"))) is not None:
        qat.prepare(student, scheme)
    if as_adapter and training.export_adapter(student, base, folder / "adapter", tokenizer):
        return folder / "adapter"
    training.export_model(student, base, folder / "model", dtype, tokenizer)
    return folder / "model"
