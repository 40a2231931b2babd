"""What somebody may have meant by a name that there is not: for the end of a fault's message."""

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable, Sequence

# Where components are, and of which keys.
_MODULES = {
    "torch.optim": "optimizer",
    "torch.optim.lr_scheduler": "lr_scheduler",
    "distill_tune.data": "dataset dataset_val augmentations tokenizer teacher_tokenizer",
    "distill_tune.generation": "sampling score filters",
    "distill_tune.losses": "loss kd_loss kd_token_weight hidden_loss",
    "distill_tune.models": "model teacher_model",
    "distill_tune.qat": "quantizer",
    "distill_tune.teachers": "teacher_model teacher_quantizer",
    "distill_tune.training": "kd_ratio temperature",
    "torchao.optim": "optimizer",
    "torchao.quantization": "teacher_quantizer",
    "torchtune.datasets": "dataset dataset_val",
    "torchtune.training": "checkpointer teacher_checkpointer",
    "torchtune.training.lr_schedulers": "lr_scheduler",
    "torchtune.training.metric_logging": "metric_logger",
}


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The few names that resemble ``name``, best first."""
    return difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=cutoff)


def did_you_mean(names: Sequence[str], otherwise: str = "") -> str:
    return f", did you mean {' or '.join(names)}?" if names else otherwise


def no_module(package: str, folders: Sequence[str] = ()) -> str:
    """What is told of a package that is neither in ``folders`` nor installed."""
    near = nearest(package, [module.name for module in pkgutil.iter_modules([*folders, *sys.path])])
    also = f", or did you mean {' or '.join(near)}" if near else ""
    return f"no module named {package}; is the package installed{also}?"


def has_no(module: str, name: str, names: Iterable[str]) -> str:
    """What is told of a module that has not a name, but ``names``."""
    return f"{module} has no {name}{did_you_mean(nearest(name, names))}"


def components_meant(key: str, name: str) -> list[str]:
    """Dotted names of a key's components that are spelled as ``name``, or else almost so; imports their modules."""
    importlib.import_module("distill_tune._torchtune_compat")
    dotted: dict[str, list[str]] = {}
    for module in (importlib.import_module(of) for of, keys in _MODULES.items() if key.split(".")[0] in keys.split()):
        for there in getattr(module, "__all__", dir(module)):
            found = getattr(module, there, None)
            if not there.startswith("_") and (inspect.isclass(found) or inspect.isfunction(found)):
                dotted.setdefault(_plain(there), []).append(f"{module.__name__}.{there}")
    return [meant for near in nearest(_plain(name), dotted)[:1] for meant in dotted[near]]


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
