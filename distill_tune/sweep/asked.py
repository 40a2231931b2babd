"""What a sweep was asked for: its trials, what they are run with, and what they are compared by."""

import dataclasses
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from distill_tune.config.files import find_config, local_path, recipes_folder
from distill_tune.config.keys import KEYS
from distill_tune.config.load import load_config
from distill_tune.counts import counted
from distill_tune.errors import UserError
from distill_tune.evaluation.named_models import AFTER, BEFORE
from distill_tune.secrets import plain_config
from distill_tune.sweep.folder import training_overrides
from distill_tune.sweep.objective import Objective, find_objective
from distill_tune.sweep.search import Search
from distill_tune.sweep.trials import Trial, Trials
from distill_tune.sweep.values import Axis, Settings, grid_size, overrides_of, to_check

NUM_OTHER_SEEDS = 2  # with which the best settings are run again


@dataclasses.dataclass(frozen=True)
class AskedSweep:
    """
    Attributes:
        launch: torchrun's options, before the recipe.
        shared: overrides that hold for all trials.
        measuring: those that their evaluation alone reads.
        points: settings of the trials; none of a search, which proposes them.
        most_searched: how many a search proposes; 0 where there is none.
        num_repeated: how many of the best settings are run again.
        devices: CUDA_VISIBLE_DEVICES of trials that run at one time; None leaves it as it is.
        config: that the trials share but for what varies, without secrets.
        varied: dotted keys that differ between trials, also those that take their values from what varies.
    """

    recipe: Path
    launch: Sequence[str]
    name: str
    shared: Sequence[str]
    measuring: Sequence[str]
    axes: Sequence[Axis]
    points: Sequence[Settings]
    most_searched: int
    objective: Objective
    num_repeated: int
    devices: Sequence[str | None]
    folder: Path
    config: Mapping[str, Any]
    varied: Sequence[str]
    num_processes: int

    @classmethod
    def of(
        cls,
        *,
        objective: str,
        folder: Path | None,
        axes: Sequence[Axis],
        num_repeated: int,
        shared: Sequence[str],
        **asked: Any,
    ) -> "AskedSweep":
        """
        Raises:
            UserError: the config cannot be read; an objective that there is not, or by which trials cannot be
                compared; a model that would be measured in their place.
        """
        from distill_tune.training.state import changes_between

        file, keys = find_config(asked["name"]), [axis.key for axis in axes]
        points = [[*shared, *overrides_of(point)] for point in to_check(axes)]
        config, *others = (plain_config(load_config(file, overrides)) for overrides in points)
        varied = sorted({key for other in others for key, _ in changes_between(config, other)})
        tasks = config.get("tasks") or []
        names = [Path(str(task)).stem for task in ([tasks] if isinstance(tasks, str) else tasks)]  # or files of YAML
        found = find_objective(objective, names)
        if AFTER in (config.get("models") or {}):
            raise UserError(f"models.{AFTER}: would be measured in each trial's place; leave it out")
        found.require_comparable(varied, config)
        folder = folder or local_path(f"{config.get('output_dir', 'outputs')}_sweep")
        repeated = 0 if "seed" in keys else num_repeated
        referred = set(re.findall(r"\$\{\s*(\w+)", " ".join([file.read_text(encoding="utf-8"), *shared])))
        measuring = [override for override in shared if _is_of_evaluation(override, referred)]
        training = [override for override in shared if override not in measuring]
        return cls(
            objective=found,
            folder=folder,
            axes=axes,
            config=config,
            varied=varied,
            num_repeated=repeated,
            shared=training,
            measuring=measuring,
            **asked,
        )

    @property
    def recipe_name(self) -> str:
        """As a command line names it."""
        return self.recipe.stem if self.recipe.parent == recipes_folder() else str(self.recipe)

    @property
    def seed(self) -> int:
        """Of all trials, but those that repeat one."""
        return int(self.config.get("seed") or 0)

    @property
    def other_seeds(self) -> list[int]:
        return [self.seed + number for number in range(1, NUM_OTHER_SEEDS + 1)]

    @property
    def num_settings(self) -> int:
        return len(self.points) or int(min(self.most_searched, grid_size(self.axes)))

    @property
    def num_runs(self) -> int:
        return self.num_settings + min(self.num_repeated, self.num_settings) * NUM_OTHER_SEEDS

    @property
    def described(self) -> str:
        """What is about to come."""
        lines = [f"{counted(self.num_settings, 'trial')}, in {self.folder}, by {self.objective.name}:"]
        lines += [f"  {axis}" for axis in self.axes]
        if self.most_searched and not self.prunes:
            lines.append(f"no trial is ended early: {self._why_not_pruned}")
        if self.num_repeated:
            best = "the best" if self.num_repeated == 1 else f"the best {min(self.num_repeated, self.num_settings)}"
            seeds = " and ".join(map(str, self.other_seeds))
            lines.append(f"then {best} again with seeds {seeds}, until none is better: {self.num_runs} runs or more")
        return "\n".join(lines)

    @property
    def prunes(self) -> bool:
        """Whether a search may end trials early: by ``val_ce_loss``, where it can be compared and comes in time."""
        return self._why_not_pruned is None

    @property
    def _why_not_pruned(self) -> str | None:
        by = find_objective("val_ce_loss", ())
        if unlike := next((key for key in self.varied if by.unlike(key, self.config)), None):
            return f"val_ce_loss means another thing where {unlike} varies"
        if self.config.get("dataset_val") is None or not self.config.get("run_val_every_n_steps"):
            return "that takes dataset_val and run_val_every_n_steps"
        return None

    def search(self) -> Search | None:
        """
        Raises:
            UserError: one is asked for, and Optuna is not there.
        """
        return Search(self.axes, self.objective, self.seed, self.prunes) if self.most_searched else None

    def run_of(self, config: str) -> list[str]:
        """A run with a config, as `distill-tune` takes it: the recipe started as those of the trials are."""
        return ["run", *self.launch, self.recipe_name, "--config", config]

    def overrides_of(self, folder: Path, trial: Trial) -> list[str]:
        """All that a trial in ``folder`` is run with."""
        return [*self.shared, *training_overrides(folder, trial, self.config)]

    def commands_of(self, trials: Trials, trial: Trial) -> list[list[str]]:
        """Of `distill-tune`, one after the other."""
        folder = trials.folder_of(trial)
        train = [*self.run_of(self.name), *self.overrides_of(folder, trial)]
        return [train, self._evaluation(folder)] if self.objective.by_evaluation else [train]

    def _evaluation(self, folder: Path) -> list[str]:
        """Of what a trial has left; on dataset_val, so that dataset_test stays what no choice was made by."""
        command = ["run", "evaluate", "--config", str(folder / "config.yaml"), "num_answers=0", "measure_speed=False"]
        has_both = None not in (self.config.get("dataset_val"), self.config.get("dataset_test"))
        own = ["~evaluation_folder"] if self.config.get("evaluation_folder") is not None else []
        # The untrained student is the same for all.
        untrained = [] if BEFORE in (self.config.get("models") or {}) else [f"+models.{BEFORE}=null"]
        return [*command, *self.measuring, *untrained, *(["~dataset_test"] if has_both else []), *own]


def _is_of_evaluation(override: str, referred: Set[str]) -> bool:
    """Whether no training reads it, not even in ``${key}``."""
    name = re.split(r"[.=]", override.lstrip("+~"))[0]
    return name in KEYS and "evaluate" in KEYS[name].recipes and name not in referred
