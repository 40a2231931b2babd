"""Where a run stands, besides its tensors, and whether a config goes on with it."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from distill_tune.data.dates import day_of_run
from distill_tune.errors import UserError
from distill_tune.secrets import plain_config

# What a checkpoint's tensors belong to. Rows, batches and weights are compared by what they are, not by their names.
_MATTERS = (
    *("model", "checkpointer", "teacher_model", "teacher_checkpointer", "teacher_tokenizer"),
    "optimizer._component_",
)
# Of these the plan of steps tells whether they make other steps; what it has of them, in their names.
_DECIDED_BY_PLAN = ("batch_size", "gradient_accumulation_steps", "max_tokens_per_batch")
_IN_KEYS = {
    "sequences a step": "sequences a step (batch_size, gradient_accumulation_steps, processes)",
    "tokens a batch": "max_tokens_per_batch",
}
_FACTORS = "their factors"  # of the sequences of a step; whose product alone has to stay
# Where a run writes, and how it is resumed, may be new each time.
_ABOUT_THE_RUN = ("output_dir", "log_dir", "resume", "resume_from_checkpoint", "resume_with_changes")
# Where a model's weights are read from, or asked for: means nothing where their content is known.
PATHS = {"path", "checkpoint_dir", "checkpoint_files"}
PATHS |= {"url", "engine", "token", "timeout", "concurrency", "retries"}
_NOTHING = "nothing"


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """state.json of a checkpoint.

    Attributes:
        step: optimizer steps taken; the next step's rows, weights of losses and learning rate follow from it.
        seed: the seed in use.
        plan: what decides which rows a step has.
        config: as run, without secrets.
        tokens: that the steps have read, on all ranks.
        num_ranks: that wrote the checkpoint.
        validation: of this step, where it had one.
        date: that the run's chat template writes, as ``2026-03-01``; None of a run that has not set one.
        limits: of micro-batches, where memory ran out; see :class:`~distill_tune.data.StepPlan`.
    """

    step: int
    seed: int
    plan: Mapping[str, Any]
    config: Mapping[str, Any]
    tokens: int = 0
    num_ranks: int = 1
    validation: Mapping[str, float] = dataclasses.field(default_factory=dict)
    date: str | None = None
    limits: list[int] | None = None

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

    def write(self, folder: Path) -> None:
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, default=str)
        (folder / "state.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def after(
        cls,
        step: int,
        seed: int,
        plan: Mapping[str, Any],
        cfg: DictConfig,
        tokens: int,
        line: Mapping[str, Any],
        limits: list[int] | None = None,
    ) -> "TrainingState":
        """The state after a step whose metrics are ``line``."""
        validation = {name: value for name, value in line.items() if name.startswith("val_")}
        date = day_of_run()
        return cls(step, seed, plan, plain_config(cfg), tokens, validation=validation, date=date, limits=limits)

    def require_same_config(self, folder: Path, cfg: DictConfig, with_changes: bool) -> None:
        """Print what a config has changed since, where that is harmless.

        Raises:
            UserError: model, teacher or optimizer are others, and not ``with_changes``.
        """
        changes = list(changes_between(self.config, plain_config(cfg)))
        matter = {key for key, _ in changes if _is_below(key, _MATTERS) and not self._is_known_by_content(key)}
        _refuse(folder, [text for key, text in changes if key in matter], with_changes)
        if harmless := [text for key, text in changes if key not in matter and key not in _DECIDED_BY_PLAN]:
            print(f"changed since {folder.name}: {', '.join(harmless)}")

    def _is_known_by_content(self, key: str) -> bool:
        first, *below = key.split(".")
        return bool(PATHS & set(below)) and content_of(first.replace("checkpointer", "model")) in self.plan

    def require_same_plan(self, folder: Path, plan: Mapping[str, Any], with_changes: bool) -> None:
        """
        Raises:
            UserError: rows, batches or weights are not those that this state was saved with, and not ``with_changes``.
        """
        # What an older version has not noted cannot be compared.
        before = {key: self.plan.get(key, value) for key, value in plan.items()}
        named = {key: _IN_KEYS.get(key, key) for key in plan}
        factors, were = plan.get(_FACTORS, {}), self.plan.get(_FACTORS, {})
        if changed := [f"{name} {were[name]} -> {now}" for name, now in factors.items() if were.get(name, now) != now]:
            named["sequences a step"] = f"sequences a step ({', '.join(changed)})"
        differ = [key for key, value in plan.items() if before[key] != value and key != _FACTORS]
        _refuse(folder, [f"{named[key]} was {before[key]}, is {plan[key]}" for key in differ], with_changes)


def content_of(model: str) -> str:
    """Under which name a plan has the weights that ``model`` or ``teacher_model`` starts from."""
    return f"content of {model}"


def _refuse(folder: Path, changes: list[str], with_changes: bool) -> None:
    if not changes:
        return
    told = "\n  ".join(changes)
    if not with_changes:
        raise UserError(
            f"checkpoint {folder}: this config would go on with another run; set it back, or "
            f"resume_with_changes=True\n  {told}"
        )
    print(f"going on in spite of changes:\n  {told}")


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(dotted key, ``key old -> new``) of every value that differs, but of where a run writes and how it is resumed."""
    before, now = dict(_values(old)), dict(_values(new))
    for key in sorted({**before, **now}):
        was, is_now = before.get(key, _NOTHING), now.get(key, _NOTHING)
        if was != is_now and not set(key.split(".")) & set(_ABOUT_THE_RUN):
            yield key, f"{key} {was} -> {is_now}"


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _values(value, f"{prefix}.{number}")
    else:
        yield prefix, node


def _is_below(key: str, parents: tuple[str, ...]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)
