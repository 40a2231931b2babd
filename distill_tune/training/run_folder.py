"""The folder that a run leaves: what lies where."""

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill_tune.config.files import recipes_folder
from distill_tune.data.dates import day_of_run
from distill_tune.disk import keep_to_oneself, write_text
from distill_tune.errors import UserError
from distill_tune.metrics_file import read_metrics
from distill_tune.secrets import hide_in_arguments, plain_config
from distill_tune.training.distributed import from_main_process, is_main_process
from distill_tune.training.state import changes_between
from distill_tune.versions import versions

_SECONDS_TO_BE_SEEN = 10  # network file systems show a new file some seconds late


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """``output_dir`` of a config.

    config.yaml, run.json, metrics.jsonl, rollouts.jsonl, checkpoints/step_N/, model/, adapter/ and finished.json are
    always where they are here.
    """

    path: Path

    @classmethod
    def of(cls, output_dir: str) -> "RunFolder":
        return cls(Path(os.path.expanduser(output_dir)))

    @property
    def _config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def _finished(self) -> Path:
        return self.path / "finished.json"

    def last_step(self, cfg: DictConfig) -> int | None:
        """Of a run that has come to its end with these settings; None where none has. All ranks call it."""
        return from_main_process(self._last_step(cfg))

    def _last_step(self, cfg: DictConfig) -> int | None:
        has_result = self.model.exists() or self.adapter.exists()
        if not has_result and any(self.checkpoints.glob("step_*")):
            return None  # the last checkpoint makes it again
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # not there, or not readable
            step = json.loads(self._finished.read_text(encoding="utf-8"))["step"]
            was: Any = OmegaConf.to_container(OmegaConf.load(self._config))
            now = plain_config(cfg)
            drawn = {key: was.get(key) for key in ("seed", "date") if now.get(key) is None}  # written there by the run
            return None if any(changes_between(was, now | drawn)) else int(step)
        return None

    def write_config(self, cfg: DictConfig, seed: int) -> None:
        """Make the folder, lock it against other runs, and write config.yaml, with seed and date. All ranks call it.

        Raises:
            UserError: it cannot be written, another run writes to it, or a machine does not see it.
        """
        text = _header() + OmegaConf.to_yaml(OmegaConf.create(plain_config(cfg) | {"seed": seed, "date": day_of_run()}))
        if is_main_process():
            self._write_config(text)
        text = from_main_process(text)
        for _ in range(_SECONDS_TO_BE_SEEN):
            if is_main_process() or self._reads(text):
                return
            time.sleep(1)
        raise UserError(
            f"output_dir={self.path}: {socket.gethostname()} does not see what rank 0 has written to "
            f"{self.path.absolute()}; name a folder that all machines share"
        )

    def _write_config(self, text: str) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not keep_to_oneself(self.path):
                raise UserError(f"output_dir={self.path}: another run is writing there; wait for it, or name another")
            write_text(self._config, text)
            self._finished.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"output_dir={self.path}: cannot be written: {error.strerror}") from error

    def _reads(self, text: str) -> bool:
        try:
            return self._config.read_text(encoding="utf-8") == text
        except OSError:
            return False

    def finish(self, last: Mapping[str, float] | None) -> str:
        """Note in finished.json that the run has come to its end, and tell of it: losses, what is where, what is next.

        Args:
            last: the last step's metrics; None where a resumed run had none left to take.
        """
        lines = []
        if last is None:
            *_, last = [None, *read_metrics(self.metrics)]
        if last and is_main_process():
            with contextlib.suppress(OSError):  # on a full disk model/ and adapter/ are what matters
                write_text(self._finished, json.dumps({"step": last["step"]}) + "\n")
        if last:
            found = {name: last.get(name) for name in ("loss", "ce_loss", "kd_loss")}
            losses = [f"{name} {value:.4f}" for name, value in found.items() if value is not None]  # null: not finite
            lines.append(", ".join([f"done: step {last['step']}", *losses]))
        merged = ", adapters merged" if self.adapter.exists() else ""
        written = {
            "model": (self.model, f"the student{merged}; opens with transformers"),
            "adapter": (self.adapter, "the LoRA factors; opens with peft on the base model"),
            "metrics": (self.metrics, "a line a step"),
            "rollouts": (self.rollouts, "some of the student's answers"),
        }
        lines += [f"  {path}  {what}" for path, what in written.values() if path.exists()]
        folder = self.model if self.model.exists() else self.adapter
        return "\n".join([*lines, f"try it: distill-tune chat {shlex.quote(str(folder))}"])


def recipe_name() -> str:
    """Of the recipe that is run: a shipped one's name, any other's file."""
    recipe = Path(sys.argv[0])
    return recipe.stem if recipe.parent == recipes_folder() else str(recipe)


def _header() -> str:
    packages = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"# {shlex.join(['distill-tune', 'run', recipe_name(), *hide_in_arguments(sys.argv[1:])])}\n# {packages}\n"
