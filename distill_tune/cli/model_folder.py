"""Models' folders that a command is given."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_tune.config.files import is_model_folder, no_model_at
from distill_tune.errors import UserError

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from distill_tune.data import StepPlan
    from distill_tune.evaluation import Entrant
    from distill_tune.models import Checkpoint
    from distill_tune.teachers import Teacher


def require_models(folders: Sequence[Path]) -> None:
    """
    Raises:
        UserError: one is no model's folder.
    """
    for folder in folders:
        if not is_model_folder(folder):
            raise UserError(f"{folder}: {no_model_at(folder)}")


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """The whole model of a Hugging Face folder, or of an adapter's and its base."""

    path: Path
    component: "DictConfig"
    checkpoint: "Checkpoint"
    vocab_size: int
    max_seq_len: int
    parameters: int
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def open(cls, path: Path) -> "ModelFolder":
        """
        Raises:
            UserError: it cannot be built, or the weights are not its own.
        """
        from omegaconf import OmegaConf

        from distill_tune import models

        component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(path)})
        checkpoint = models.Checkpoint.read("model", "model.path", path)
        model = models.checked_on_meta("model", component, checkpoint)
        shapes = tuple(tuple(p.shape) for p in model.parameters())
        parameters = sum(p.numel() for p in model.parameters())
        vocab_size = model.tok_embeddings.weight.shape[0]
        return cls(path, component, checkpoint, vocab_size, model.max_seq_len, parameters, shapes)

    def require_rows(self, writer: Path, plan: "StepPlan") -> None:
        """
        Args:
            writer: the folder in whose tokens the rows are.

        Raises:
            UserError: this model cannot read them.
        """
        from distill_tune import models

        if self.checkpoint.folder != writer:
            try:
                models.require_one_tokenizer(writer, self.checkpoint.folder, plan.used_tokens)
            except UserError as error:
                told = "a teacher of another tokenizer than the students' is compared by its config: compare --config"
                raise UserError(f"{error}; {told}") from error
        models.require_tokens(str(self.path), self.vocab_size, plan.largest_token)
        if plan.longest > self.max_seq_len:
            raise UserError(
                f"--max-seq-len: the longest row has {plan.longest} tokens, "
                f"{self.path} reads {self.max_seq_len} at most"
            )

    def entrant(self, name: str, device: "torch.device", dtype: "torch.dtype") -> "Entrant":
        """For :func:`~distill_tune.evaluation.compare`."""
        from distill_tune.evaluation import Entrant
        from distill_tune.teachers import LiveTeacher

        def load() -> "Teacher":
            return LiveTeacher(self.load(device, dtype))

        return Entrant(name, self.parameters, self.shapes, load)

    def load(self, device: Any, dtype: Any) -> Any:
        """
        Raises:
            UserError: its files cannot be read.
        """
        from distill_tune import models

        return models.load_model(self.component, self.checkpoint, dtype, device)


def short_name(folder: Path, folders: Sequence[Path]) -> str:
    """A folder's last name that tells: `outputs/distilled/model` is `distilled`."""
    name = folder.parent.name if folder.name == "model" and folder.parent.name else folder.name
    return name if [f.name for f in folders].count(name) <= 1 else str(folder)
