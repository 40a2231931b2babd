"""Answers of several steps that were written at once, which a run that goes on among these cannot write again: the
weights are others by then.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_tune.disk import write_text
from distill_tune.generation import Completion
from distill_tune.training.distributed import from_main_process, is_main_process

FOLDER = "rollouts_ahead"
_CHECKPOINT = re.compile(r"step_(\d+)|\.step_(\d+)\.partial")

Answers = dict[int, list[Completion | None]]


class KeptAnswers:
    """A file of a run's folder for each group of steps whose answers are written together, as long as the run may go on
    within it from one of its checkpoints.

    Args:
        run: the run's folder.
        every: steps of a group; of a single one nothing is kept.
        seed: of the run.
    """

    def __init__(self, run: Path, every: int, seed: int) -> None:
        self._folder, self._checkpoints = run / FOLDER, run / "checkpoints"
        self._every, self._seed = every, seed

    def of_step(self, step: int, num_rows: int) -> Answers | None:
        """Those of the group in which a run goes on with a step. All ranks call it.

        Args:
            num_rows: of the step; answers of another number of rows do not count.

        Returns:
            None where the step is the first of its group, or where they are not there, which is told.
        """
        return from_main_process(self._read(step, num_rows)) if step % self._every else None

    def keep(self, answers: Answers) -> None:
        if self._every == 1 or not is_main_process():
            return
        first = min(answers) // self._every * self._every
        plain = {step: [None if one is None else vars(one) for one in of_step] for step, of_step in answers.items()}
        content = {"seed": self._seed, "every": self._every, "steps": plain}
        try:
            self._folder.mkdir(exist_ok=True)
            write_text(self._folder / f"step_{first}.json", json.dumps(content))
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

    def _read(self, step: int, num_rows: int) -> Answers | None:
        path = self._folder / f"step_{step // self._every * self._every}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            is_same = (content["seed"], content["every"]) == (self._seed, self._every)
            steps = {int(number): list(map(_completion, of_step)) for number, of_step in content["steps"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            is_same, steps = False, {}
        if is_same and len(steps.get(step, ())) == num_rows:
            return steps
        print(f"{path}: the answers to step {step + 1} that the run has had are not there; it writes others")
        return None


def _number(path: Path) -> int:
    return int("".join(filter(str.isdigit, path.stem)))


def _completion(found: Mapping[str, Any] | None) -> Completion | None:
    return (
        None if found is None else Completion(tuple(found["tokens"]), tuple(found["log_probs"]), found["finish_reason"])
    )
