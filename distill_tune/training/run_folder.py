"""The folder that a run leaves: what lies where."""

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

import distill_tune
from distill_tune.config.files import recipes_folder
from distill_tune.errors import UserError
from distill_tune.training.distributed import is_main_process


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """``output_dir`` of a config.

    config.yaml, metrics.jsonl, checkpoints/step_N/, model/ and adapter/ are always where they are here.
    """

    path: Path

    @classmethod
    def of(cls, output_dir: str) -> "RunFolder":
        return cls(Path(output_dir).expanduser())

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step_{step}"

    def newest_checkpoint(self) -> Path | None:
        """The complete checkpoint with the highest step."""
        folders = [folder for folder in self.path.glob("checkpoints/step_*") if folder.name[5:].isdigit()]
        return max(folders, key=lambda folder: int(folder.name[5:]), default=None)

    def checkpoint_to_resume(self, resume: bool | str) -> Path | None:
        """The checkpoint that ``resume_from_checkpoint`` means: the newest, a folder, or none for a fresh start.

        Raises:
            UserError: a fresh start in a folder that holds a run; a resume in one that holds none.
        """
        checkpoint = Path(resume) if isinstance(resume, str) else self.newest_checkpoint()
        if resume and checkpoint is None:
            raise UserError(
                f"resume_from_checkpoint={resume}: {self.path}/checkpoints has none; "
                "they are written every save_every_n_steps and after each epoch"
            )
        if not resume and (checkpoint or self.model.exists() or self.adapter.exists()):
            raise UserError(
                f"output_dir={self.path}: holds a run already; go on with it (resume_from_checkpoint=True), "
                "name another folder, or delete this one"
            )
        return checkpoint if resume else None

    def write_config(self, cfg: DictConfig, seed: int) -> None:
        """Make the folder and write config.yaml, with the seed in use.

        Raises:
            UserError: it cannot be written.
        """
        if not is_main_process():
            return
        written = OmegaConf.create(cfg)
        written["seed"] = seed
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(_header() + OmegaConf.to_yaml(written), encoding="utf-8")
        except OSError as error:
            raise UserError(f"output_dir={self.path}: cannot be written: {error.strerror}") from error

    def summary(self, last: Mapping[str, float] | None) -> str:
        """The end of a run: the last step's losses, what was written where, what to do next."""
        lines = []
        if last:
            losses = ", ".join(f"{name} {last[name]:.4f}" for name in ("loss", "ce_loss", "kd_loss"))
            lines.append(f"done: step {last['step']}, {losses}")
        written = {
            "model": (self.model, "the student, adapters merged; opens with transformers"),
            "adapter": (self.adapter, "the LoRA factors; opens with peft on the base model"),
            "metrics": (self.metrics, "a line a step"),
        }
        lines += [f"  {path}  {what}" for path, what in written.values() if path.exists()]
        if self.model.exists():
            code = f"from transformers import pipeline; print(pipeline('text-generation', '{self.model}')('Once'))"
        else:
            code = f"from peft import AutoPeftModelForCausalLM as M; print(M.from_pretrained('{self.adapter}'))"
        return "\n".join([*lines, f'try it: python -c "{code}"'])


def _header() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchtune", "torchao"))
    recipe = Path(sys.argv[0])
    name = recipe.stem if recipe.parent == recipes_folder() else str(recipe)
    return (
        f"# {shlex.join(['distill-tune', 'run', name, *sys.argv[1:]])}\n"
        f"# distill-tune {distill_tune.__version__}, {packages}, Python {platform.python_version()}\n"
    )
