"""Answers of several steps that were written at once, which a run that goes on among these cannot write again: the
weights are others by then.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distill_tune.disk import write_text
from distill_tune.errors import UserError
from distill_tune.generation import Completion
from distill_tune.training.distributed import from_main_process, is_main_process

FOLDER = "rollouts_ahead"
_CHECKPOINT = re.compile(r"step_(\d+)|\.step_(\d+)\.partial")

Answers = dict[int, list[Completion | None]]


class _Kept(NamedTuple):
    """Of each step, what its answers depended on, and these."""

    settings: dict[int, dict[str, Any]]
    answers: Answers


class KeptAnswers:
    """A file of a run's folder for each group of steps whose answers are written together, as long as the run may go on
    within it from one of its checkpoints.

    Args:
        run: the run's folder.
        every: steps of a group; of a single one nothing is kept.
        seed: of the run.
        settings_of: what the answers to a step depend on, by keys under ``rollouts``.
    """

    def __init__(self, run: Path, every: int, seed: int, settings_of: Callable[[int], dict[str, Any]]) -> None:
        self._folder, self._checkpoints = run / FOLDER, run / "checkpoints"
        self._every, self._seed, self._settings_of = every, seed, settings_of

    def of_step(self, step: int, num_rows: int) -> Answers | None:
        """Those of the group in which a run goes on with a step. All ranks call it.

        Args:
            num_rows: of the step; answers of another number of rows do not count.

        Returns:
            None where the step is the first of its group, or where they are not there, which is told.

        Raises:
            UserError: they were written with other settings.
        """
        if step % self._every == 0:
            return None
        path = self._path(step)
        found = from_main_process(self._read(path))
        for key, was in (found.settings.get(step, {}) if found else {}).items():
            if (now := self._settings_of(step)[key]) != was:
                raise UserError(
                    f"rollouts.{key}={now}: the answers to step {step + 1} have been written with {was}; set it back "
                    f"until step {step - step % self._every + self._every}, or delete {path}, and others are written"
                )
        if found and len(found.answers.get(step, ())) == num_rows:
            return found.answers
        if is_main_process():
            print(f"{path}: the answers to step {step + 1} that the run has had are not there; it writes others")
        return None

    def keep(self, answers: Answers) -> None:
        if self._every == 1 or not is_main_process():
            return
        first = min(answers) // self._every * self._every
        plain = {step: [None if one is None else vars(one) for one in of_step] for step, of_step in answers.items()}
        settings = {step: self._settings_of(step) for step in answers}
        content = {"seed": self._seed, "every": self._every, "settings": settings, "steps": plain}
        try:
            self._folder.mkdir(exist_ok=True)
            write_text(self._path(first), json.dumps(content))
            # The group before stays, too: of its checkpoint there may be nothing yet, while it is being written.
            oldest = min([first - self._every, *self._steps_of_checkpoints()])
            for path in self._folder.glob("step_*.json"):
                if _number(path) + self._every <= oldest:
                    path.unlink()
        except OSError as error:
            print(f"{self._folder}: {error.strerror}; a run that goes on within these steps will write other answers")

    def _steps_of_checkpoints(self) -> list[int]:
        """Those in place, and one that is being written."""
        names = (_CHECKPOINT.fullmatch(path.name) for path in self._checkpoints.glob("*step_*"))
        return [int(name[1] or name[2]) for name in names if name]

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step // self._every * self._every}.json"

    def _read(self, path: Path) -> _Kept | None:
        """None where there is no such file, or it is of another seed."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            settings = {int(step): dict(of_step) for step, of_step in content["settings"].items()}
            steps = {int(step): list(map(_completion, of_step)) for step, of_step in content["steps"].items()}
            is_same = (content["seed"], content["every"]) == (self._seed, self._every)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return _Kept(settings, steps) if is_same else None


def _number(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.stem)))


def _completion(found: Mapping[str, Any] | None) -> Completion | None:
    return (
        None if found is None else Completion(tuple(found["tokens"]), tuple(found["log_probs"]), found["finish_reason"])
    )
