"""Components that somebody may have meant who gave a name without its module."""

import difflib
import importlib
import inspect
from collections.abc import Iterator

_DATASETS = ("distill_tune.data", "torchtune.datasets")
# Where the components of a key are.
_MODULES = {
    "optimizer": ("torch.optim", "torchao.optim"),
    "lr_scheduler": ("torch.optim.lr_scheduler", "torchtune.training.lr_schedulers"),
    "loss": ("distill_tune.losses",),
    "kd_loss": ("distill_tune.losses",),
    "kd_token_weight": ("distill_tune.losses",),
    "hidden_loss": ("distill_tune.losses",),
    "kd_ratio": ("distill_tune.training",),
    "temperature": ("distill_tune.training",),
    "dataset": _DATASETS,
    "dataset_val": _DATASETS,
    "augmentations": ("distill_tune.data",),
    "tokenizer": ("distill_tune.data",),
    "model": ("distill_tune.models",),
    "teacher_model": ("distill_tune.models", "distill_tune.teachers"),
    "teacher_quantizer": ("torchao.quantization", "distill_tune.teachers"),
    "checkpointer": ("torchtune.training",),
    "teacher_checkpointer": ("torchtune.training",),
    "metric_logger": ("torchtune.training.metric_logging",),
}


def meant_by(key: str, name: str) -> list[str]:
    """Dotted names of this key's components that are spelled as ``name``, or else almost so; imports their modules."""
    importlib.import_module("distill_tune._torchtune_compat")
    dotted: dict[str, list[str]] = {}
    for module in _MODULES.get(key.partition(".")[0], ()):
        for there in _names_of(module):
            dotted.setdefault(_plain(there), []).append(f"{module}.{there}")
    near = difflib.get_close_matches(_plain(name), dotted, n=1)
    return dotted[near[0]] if near else []


def _names_of(module: str) -> Iterator[str]:
    imported = importlib.import_module(module)
    for name in getattr(imported, "__all__", dir(imported)):
        found = getattr(imported, name, None)
        if not name.startswith("_") and (inspect.isclass(found) or inspect.isfunction(found)):
            yield name


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
