"""Components: what a config names with ``_component_`` is imported, its arguments are checked, and it is called."""

import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.files import did_you_mean, nearest
from distill_tune.config.values import components_of
from distill_tune.errors import UserError, one_line

# Arguments that the recipe itself passes, by top-level key: the first so many positional ones, and these by name.
_PASSED_POSITIONAL = {"dataset": 1, "dataset_val": 1, "optimizer": 1, "lr_scheduler": 1}
_PASSED_BY_NAME = {"lr_scheduler": {"num_training_steps", "last_epoch"}}

# Arguments that may be more here than their annotation says; config/values.py checks them.
_MORE_HERE = {"lr_scheduler.num_warmup_steps"}

# Keys of an entry in a list that the recipe reads itself.
ENTRY_KEYS = {"dataset": {"weight"}, "dataset_val": {"weight"}, "teacher_model": {"name", "weight"}}

# What a torchtune component asks for and the recipes can do without.
_OPTIONAL_HERE = {"FullModelHFCheckpointer": {"checkpoint_files", "model_type", "output_dir"}}

# What torchtune's dataset builders hand on, through their **load_dataset_kwargs, to `datasets.load_dataset`.
_LOAD_DATASET_KEYS = {"cache_dir", "data_dir", "data_files", "delimiter", "encoding", "field", "name", "num_proc"}
_LOAD_DATASET_KEYS |= {"revision", "split", "token"}

# torchtune's losses are served by our own head: same meaning, a fraction of the memory.
_SERVED_BY = {
    "torch.nn.CrossEntropyLoss": "distill_tune.losses.CrossEntropy",
    "torchtune.modules.loss.CEWithChunkedOutputLoss": "distill_tune.losses.CrossEntropy",
    "torchtune.modules.loss.LinearCrossEntropyLoss": "distill_tune.losses.CrossEntropy",  # its later name
    "torchtune.modules.loss.ForwardKLLoss": "distill_tune.losses.ForwardKL",
    "torchtune.modules.loss.ForwardKLWithChunkedOutputLoss": "distill_tune.losses.ForwardKL",
    "torchtune.modules.loss.ReverseKLLoss": "distill_tune.losses.ReverseKL",
    "torchtune.modules.loss.ReverseKLWithChunkedOutputLoss": "distill_tune.losses.ReverseKL",
    "torchtune.modules.loss.SymmetricKLLoss": "distill_tune.losses.SymmetricKL",
    "torchtune.modules.loss.SymmetricKLWithChunkedOutputLoss": "distill_tune.losses.SymmetricKL",
}
_SERVED_LOSS_ARGUMENTS = {"ignore_index", "mask_ignored_tokens", "num_output_chunks", "reduction", "tp_enabled"}


def instantiate(component: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Call what ``component`` names, with its own arguments and those given here; nested components come first.

    Raises:
        UserError: it cannot be imported, or refuses its arguments.
    """
    name = component["_component_"]
    arguments = {str(key): _resolved(value) for key, value in component.items() if key != "_component_"}
    if name in _SERVED_BY:
        name = _SERVED_BY[name]
        arguments = {key: value for key, value in arguments.items() if key not in _SERVED_LOSS_ARGUMENTS}
    target = find_component(name)
    return target(*args, **(arguments | kwargs))


def build(key: str, component: DictConfig | None, default: Any = None, **kwargs: Any) -> Any:
    """:func:`instantiate`, or ``default`` where the config names nothing.

    Raises:
        UserError: it refuses its arguments; ``key`` is named.
    """
    if component is None:
        return default
    try:
        return instantiate(component, **kwargs)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(key) else f"{key}: {error}") from error
    except Exception as error:
        raise UserError(f"{key}: {component['_component_']}: {one_line(error)}") from error


def is_served(name: str) -> bool:
    """Whether a component of torchtune's is served by one of ours."""
    return name in _SERVED_BY


def find_component(name: str) -> Callable[..., Any]:
    """Import the callable with this dotted name.

    Raises:
        UserError: there is no such module or name; near names are listed.
    """
    if name.split(".")[0] == "torchtune":
        importlib.import_module("distill_tune._torchtune_compat")
    module_name, attributes = name, list[str]()
    while True:
        try:
            found = importlib.import_module(module_name)
            break
        except ModuleNotFoundError as error:
            if error.name and not module_name.startswith(error.name):
                raise UserError(f"{name}: needs the package {error.name}; pip install {error.name}") from error
            module_name, _, last = module_name.rpartition(".")
            attributes.insert(0, last)
            if not module_name:
                raise UserError(f"{name}: {no_module(last)}") from error
    for attribute in attributes:
        if not hasattr(found, attribute):
            raise UserError(f"{name}: {has_no(module_name, attribute, dir(found))}")
        found = getattr(found, attribute)
    if not callable(found):
        raise UserError(f"{name}: is a {type(found).__name__}, nothing that can be called")
    return found


def no_module(package: str, folders: Sequence[str] = ()) -> str:
    """What is told of a package that is neither in ``folders`` nor installed."""
    near = nearest(package, [module.name for module in pkgutil.iter_modules([*folders, *sys.path])])
    also = f", or did you mean {' or '.join(near)}" if near else ""
    return f"no module named {package}; is the package installed{also}?"


def has_no(module: str, name: str, names: Iterable[str]) -> str:
    """What is told of a module that has not a name, but ``names``."""
    return f"{module} has no {name}{did_you_mean(name, names)}"


def check_components(config: DictConfig, may_import: Callable[[str], bool] | None = None) -> list[str]:
    """Faults of every component's name and arguments; imports their modules, builds nothing.

    Args:
        may_import: whether a component of this name is looked at; default all are.
    """
    faults = []
    for key, component in components_of(config):
        name = str(component["_component_"])
        if is_served(name):
            faults += _check_served_loss(key, component)
        elif may_import is None or may_import(name):
            try:
                target = find_component(name)
            except UserError as error:
                faults.append(f"{key}._component_={error}")
                continue
            if parameters := _parameters(target):
                faults += _check_arguments(key, component, parameters, _hints(target))
    return faults


def arguments_taken(
    key: str, component: DictConfig, may_import: Callable[[str], bool] | None = None
) -> set[str] | None:
    """The arguments that a config may give a component; None where any, or where that cannot be told."""
    name = str(component["_component_"])
    if is_served(name):
        return {*_SERVED_LOSS_ARGUMENTS, "sym_kd_ratio"}
    if may_import is not None and not may_import(name):
        return None
    try:
        parameters = _parameters(find_component(name))
    except UserError:  # told by check_components
        return None
    if not parameters:
        return None
    passed, allowed, takes_any = _names(key, parameters)
    return None if takes_any else allowed - passed


def _parameters(target: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):  # written in C, without a signature
        return None


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else inspect.unwrap(target))
    except Exception:  # annotations that cannot be evaluated say nothing
        return {}


def _check_served_loss(key: str, component: DictConfig) -> list[str]:
    faults = []
    for argument, value in component.items():
        if argument == "_component_":
            continue
        if argument == "sym_kd_ratio" and "SymmetricKL" in component["_component_"]:
            continue
        if argument not in _SERVED_LOSS_ARGUMENTS:
            faults.append(f"{key}.{argument}: {component['_component_']} takes no such argument")
        elif argument == "ignore_index" and value != -100:
            faults.append(f"{key}.{argument}={value}: must be -100, which marks unsupervised tokens everywhere here")
    return faults


def _check_arguments(
    key: str, component: DictConfig, parameters: Sequence[inspect.Parameter], hints: Mapping[str, Any]
) -> list[str]:
    passed, allowed, takes_any = _names(key, parameters)
    optional = _OPTIONAL_HERE.get(str(component["_component_"]).rpartition(".")[2], set())
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    faults = []
    for argument, value in component.items():
        if argument == "_component_":
            continue
        if argument in passed:
            faults.append(f"{key}.{argument}: the recipe passes this itself; leave it out")
        elif argument not in allowed and not takes_any:
            names = sorted(allowed - passed)
            hint = did_you_mean(str(argument), names) or f"; it takes {', '.join(names)}"
            if argument == "source" and component["_component_"] == "distill_tune.data.docstrings":
                of_files = f"{key}=distill_tune.data.instruct {key}.source={value}"
                hint = f"; for rows of your own: {of_files} (or chat, or text)"
            faults.append(f"{key}.{argument}: {component['_component_']} has no such argument{hint}")
        elif f"{key}.{argument}" in _MORE_HERE or (value is None and argument in optional):
            continue
        elif argument in defaults and _is_same(_plain(value), defaults[argument]):
            continue  # whatever its annotation says: `path: str = None`
        elif not _is_component(value) and (wanted := _mismatch(_plain(value), hints.get(str(argument)))):
            faults.append(f"{key}.{argument}={_plain(value)}: must be {wanted}")
    required = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in passed
    ]
    faults += [
        f"{key}.{name}: missing; {component['_component_']} needs it"
        for name in required
        if name not in component and name not in optional
    ]
    return faults


def _names(key: str, parameters: Sequence[inspect.Parameter]) -> tuple[set[str], set[str], bool]:
    """The arguments that the recipe passes, all that there are, and whether any other is taken as well."""
    top = key.partition(".")[0]
    is_outermost = key == top or key.removeprefix(f"{top}.").isdigit()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    passed = {p.name for p in positional[: _PASSED_POSITIONAL.get(top, 0)]} if is_outermost else set()
    passed |= _PASSED_BY_NAME.get(top, set()) if is_outermost else set()
    allowed = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = [p.name for p in parameters if p.kind is p.VAR_KEYWORD]
    if takes_any == ["load_dataset_kwargs"]:
        allowed |= _LOAD_DATASET_KEYS
        takes_any = []
    allowed |= ENTRY_KEYS.get(top, set()) if is_outermost else set()
    return passed, allowed, bool(takes_any)


def _mismatch(value: Any, annotation: Any) -> str | None:
    """What a value would have to be, where it does not fit an annotation of plain types; unknown types fit all."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        plain = [option for option in arguments if option in (int, float, bool, str)]
        # In `float | Tensor` a plain value has to be the float; where no option is plain, anything may fit.
        others = [option for option in arguments if option not in plain and _is_written_in_yaml(option)]
        options = [*plain, *others] if plain else list(arguments)
        mismatches = [_mismatch(value, option) for option in options]
        return None if None in mismatches else " or ".join(dict.fromkeys(filter(None, mismatches)))
    if origin is typing.Literal:
        if value in arguments:
            return None
        near = nearest(value, [str(option) for option in arguments]) if isinstance(value, str) else []
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"one of {', '.join(str(option) for option in arguments)}{hint}"
    if annotation is list or origin is list:
        if not isinstance(value, list):
            return "a list"
        if not arguments:
            return None
        return next((f"a list of {wanted}" for item in value if (wanted := _mismatch(item, arguments[0]))), None)
    if annotation is dict or origin is dict:
        return None if isinstance(value, dict) else "a mapping"
    if annotation is type(None):
        return None if value is None else "null"
    if annotation is bool:
        return None if isinstance(value, bool) else "True or False"
    if annotation is int:
        return None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if annotation is float:
        return None if isinstance(value, int | float) and not isinstance(value, bool) else "a number"
    if annotation is str:
        return None if isinstance(value, str) else "text"
    return None


def _is_written_in_yaml(annotation: Any) -> bool:
    return annotation in (list, dict, type(None), Any) or typing.get_origin(annotation) is not None


def _is_same(value: Any, default: Any) -> bool:
    """Whether a value of YAML is a default; True is not 1."""
    return type(value) is type(default) and bool(value == default)


def _is_component(value: Any) -> bool:
    return isinstance(value, DictConfig) and "_component_" in value


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _resolved(value: Any) -> Any:
    if _is_component(value):
        return instantiate(value)
    if isinstance(value, DictConfig):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, ListConfig):
        return [_resolved(item) for item in value]
    return value
