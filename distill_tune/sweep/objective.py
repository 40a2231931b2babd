"""What trials are compared by: a figure that means the same in each of them."""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.errors import UserError

_EMPTY: Mapping[str, Any] = types.MappingProxyType({})
_ROWS = dict.fromkeys(("dataset_val", "dataset_test"), "trials would be measured on different rows")
_WINDOWS = {
    "window": "it is how much of a document is read at once",
    "stride": "it is how much of a document is read before what is scored",
    "tokenizer.max_seq_len": "so much of a document is read at once",
}
_ASKED = dict.fromkeys(("tasks", "task_folder", "tasks_in_chat"), "trials would be asked different questions")
_TOKENIZER = {"tokenizer": "one token is not as much text as another's"}
_TOKENS = {"tokenizer": "its tokens are counted, of rows that it cuts", "loss": "it is what is measured"}
_OTHER_TEACHERS = "trials would be held against different teachers"
_OTHER_PROMPTS = "the teacher would read different prompts"
_TEACHER = {
    "teacher_model": _OTHER_TEACHERS,
    "teacher_checkpointer": _OTHER_TEACHERS,
    "teacher_tokenizer": _OTHER_TEACHERS,
    "teacher_combination": _OTHER_TEACHERS,
    "teacher_quantizer": _OTHER_TEACHERS,
    "teacher_dtype": _OTHER_TEACHERS,
    "dtype": "the teacher computes in it, too",
    "teacher_system_prompt": _OTHER_PROMPTS,
    "teacher_prompt_template": _OTHER_PROMPTS,
}
_TEACHER_OF_EVALUATION = {"models": _OTHER_TEACHERS}
_TEACHER_OF_TRAINING = {
    "teacher_cache": "what is stored of a teacher is not all that it says",
    "cache": "what is stored of a teacher is not all that it says",
    "teacher_max_seq_len": "the teacher would read more of some rows",
}
_DIVERGENCE = {
    "kd_loss": "divergences have different sizes",
    "kd_token_weight": "divergences have different sizes",
    "temperature": "the divergence of softer distributions is smaller",
    "temperature_squared": "it scales the divergence",
}
_MIXTURE = {
    "kd_ratio": "it weighs cross-entropy against the divergence, so that another ratio alone makes another loss",
    "hidden_loss": "it is a part of the loss",
}
# Keys that change no figure where another one is set, which says the same for all trials.
_SET_INSTEAD = {"tokenizer.max_seq_len": "window", "dtype": "teacher_dtype"}


@dataclasses.dataclass(frozen=True)
class Objective:
    """
    Attributes:
        unit: what it counts.
        larger_is_better: which way it is better.
        not_with: keys by which, where they vary, figures of two trials cannot be compared, and why.
        by_evaluation: whether the recipe `evaluate` measures it, or the run itself in validation.
    """

    name: str
    unit: str
    larger_is_better: bool = False
    not_with: Mapping[str, str] = dataclasses.field(default_factory=lambda: _ROWS | _WINDOWS)
    by_evaluation: bool = True

    def require_comparable(self, keys: Sequence[str], config: Mapping[str, Any] = _EMPTY) -> None:
        """
        Args:
            keys: that vary.
            config: that trials share.

        Raises:
            UserError: one of them makes the figures of trials incomparable.
        """
        for key in keys:
            if why := self.unlike(key, config):
                instead = ", or ".join(self._ways(keys, config)) or "keep it as it is"
                raise UserError(f"--objective {self.name}: cannot compare trials where {key} varies: {why}; {instead}")

    def _ways(self, keys: Sequence[str], config: Mapping[str, Any]) -> list[str]:
        """What to set, which objective to take, or both, so that trials can be compared; the former first."""
        by_needed = dict[str, list[str]]()
        for name, other in {**OBJECTIVES, self.name: self}.items():
            needed = {_SET_INSTEAD.get(other._nearest(key)) for key in keys if other.unlike(key, config)}
            if None not in needed:
                by_needed.setdefault(" and ".join(sorted(map(str, needed))), []).append(name)
        own, others = [], []
        for needed_keys, names in by_needed.items():
            if self.name in names:
                own.append(f"set {needed_keys}")
            else:
                first = f"set {needed_keys} and " if needed_keys else ""
                others.append(f"{first}take --objective {', '.join(names)}")
        return own + others

    def unlike(self, key: str, config: Mapping[str, Any] = _EMPTY) -> str | None:
        """Why a key that varies makes figures incomparable; None where it does not."""
        found = self._nearest(key)
        is_set = found in _SET_INSTEAD and config.get(_SET_INSTEAD[found]) is not None
        return None if is_set else self.not_with.get(found)

    def _nearest(self, key: str) -> str:
        """Of ``not_with`` the key itself or the nearest above it; empty where there is none."""
        parts = key.split(".")
        above = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((one for one in above if one in self.not_with), "")

    def is_better(self, value: float, than: float) -> bool:
        return value > than if self.larger_is_better else value < than

    def cost(self, value: float) -> float:
        """What is lower the better it is."""
        return -value if self.larger_is_better else value


_OF_TRAINING = _ROWS | _TOKENS | _TEACHER | _TEACHER_OF_TRAINING | _DIVERGENCE
OBJECTIVES = {
    one.name: one
    for one in (
        Objective("bits_per_byte", "bits per byte"),
        Objective("kl", "nats of KL", not_with=_ROWS | _WINDOWS | _TOKENIZER | _TEACHER | _TEACHER_OF_EVALUATION),
        Objective("val_ce_loss", "nats a token", not_with=_ROWS | _TOKENS, by_evaluation=False),
        Objective("val_kd_loss", "val_kd_loss", not_with=_OF_TRAINING, by_evaluation=False),
        Objective("val_loss", "val_loss", not_with=_OF_TRAINING | _MIXTURE, by_evaluation=False),
    )
}


def find_objective(name: str, tasks: Sequence[str]) -> Objective:
    """
    Args:
        tasks: of the config, whose accuracy is an objective, too.

    Raises:
        UserError: there is none of this name.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if name in tasks:
        return Objective(name, "accuracy", larger_is_better=True, not_with=_ROWS | _WINDOWS | _ASKED)
    names = [*OBJECTIVES, *tasks]
    if f"val_{name}" in OBJECTIVES:
        raise UserError(f"--objective {name}: is of the rows that a trial learns; take bits_per_byte, or val_{name}")
    near = did_you_mean(nearest(name, names), f"; there are {', '.join(names)}, and tasks that the key tasks names")
    raise UserError(f"--objective {name}: no such figure{near}")


def figures_of_metrics(lines: Sequence[Mapping[str, Any]], keep_best: str | None) -> dict[str, float]:
    """``val_...`` of the model that a run has left: those of the last validation, or of the best one.

    None of what is not finite there, which is null in the file; an earlier validation is of another model.

    Args:
        lines: of metrics.jsonl.
        keep_best: the config's key, which has the best checkpoint exported.
    """
    validated = [line for line in lines if "val_ce_loss" in line]
    if not validated:
        return {}
    measured = [line for line in validated if keep_best and line.get(keep_best) is not None]
    line = min(measured, key=lambda line: line[str(keep_best)]) if measured else validated[-1]
    return _finite({name: line.get(name) for name in OBJECTIVES})


def figures_of_results(results: Mapping[str, Any], label: str) -> dict[str, float]:
    """Of results.json what is told of a trial: bits_per_byte, perplexity, kl, agreement, accuracy of tasks.

    None of what is not finite, and none at all where the model was not measured.
    """
    if (model := (results.get("models") or {}).get(label)) is None:
        return {}
    to_teacher = model.get("to_teacher") or {}
    found = {
        "bits_per_byte": model["supervised"]["bits_per_byte"],
        "perplexity": model["supervised"]["perplexity"],
        "kl": (to_teacher.get("forward_kl") or {}).get("mean"),
        "agreement": to_teacher.get("agreement"),
    }
    for task, by_label in (results.get("tasks") or {}).items():
        reached = by_label.get(label, {})
        found[task] = reached.get("acc", reached.get("exact_match"))
    return _finite(found)


def _finite(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}
