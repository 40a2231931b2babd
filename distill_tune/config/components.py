"""Components: what a config names with ``_component_`` is imported, its arguments are checked, and it is called."""

import contextlib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.files import how_to_read_cache, is_cache
from distill_tune.config.keys import KEYS
from distill_tune.config.nearest import components_meant, did_you_mean, has_no, nearest, no_module
from distill_tune.config.nodes import components_of, is_component, is_model
from distill_tune.errors import UserError, one_line

_DATASETS = ("dataset", "dataset_val", "dataset_test")
# Arguments that the recipe itself passes, by top-level key: the first so many positional ones, and these by name.
_PASSED_BY_PLACE = {**dict.fromkeys(_DATASETS, 1), "optimizer": 1, "lr_scheduler": 1}
# Functions that the recipe calls itself, later, with one argument; classes it builds, to call what they make.
_FUNCTIONS = ("score", "filters")
_PASSED_BY_NAME = {"lr_scheduler": {"num_training_steps", "last_epoch"}}

# Arguments that may be more here than their annotation says; config/values.py checks them.
_MORE_HERE = {"lr_scheduler.num_warmup_steps"}

# Keys of an entry in a list that the recipe reads itself.
ENTRY_KEYS = {**{key: {"weight"} for key in _DATASETS}, "teacher_model": {"name", "weight"}}

# What a torchtune component asks for and the recipes can do without.
_OPTIONAL_HERE = {"FullModelHFCheckpointer": {"checkpoint_files", "model_type", "output_dir"}}

# What torchtune's dataset builders hand on, through their **load_dataset_kwargs, to `datasets.load_dataset`.
_LOAD_DATASET_KEYS = {"cache_dir", "data_dir", "data_files", "delimiter", "encoding", "field", "name", "num_proc"}
_LOAD_DATASET_KEYS |= {"revision", "split", "token"}

# torchtune's losses are served by our own head: same meaning, a fraction of the memory.
_OF_TORCHTUNE = "torchtune.modules.loss."
_CROSS_ENTROPIES = (f"{_OF_TORCHTUNE}CEWithChunkedOutputLoss", f"{_OF_TORCHTUNE}LinearCrossEntropyLoss")
_SERVED_BY = dict.fromkeys(("torch.nn.CrossEntropyLoss", *_CROSS_ENTROPIES), "distill_tune.losses.CrossEntropy") | {
    f"{_OF_TORCHTUNE}{name}{of_chunks}Loss": f"distill_tune.losses.{name}"
    for name in ("ForwardKL", "ReverseKL", "SymmetricKL")
    for of_chunks in ("", "WithChunkedOutput")
}
_SERVED_LOSS_ARGUMENTS = {"ignore_index", "mask_ignored_tokens", "num_output_chunks", "reduction", "tp_enabled"}

# Of an argument that no signature has.
_ANYTHING = inspect.Parameter("anything", inspect.Parameter.KEYWORD_ONLY, default=None)

# Types that a value of YAML may have.
_IN_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list",
    dict: "a mapping",
    types.NoneType: "null",
}


def instantiate(component: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """Call what ``component`` names, with its own arguments and those given here; nested components come first.

    Raises:
        UserError: it cannot be imported, or refuses its arguments.
    """
    name = component["_component_"]
    ignored = {"_component_", *(_SERVED_LOSS_ARGUMENTS if name in _SERVED_BY else ())}
    arguments = {str(key): _resolved(value) for key, value in component.items() if key not in ignored}
    return find_component(name)(*args, **(arguments | kwargs))


def function_of(key: str, component: DictConfig) -> Callable[..., Any]:
    """What a component that is called later names: an instance of a class, or a function with its further arguments.

    Raises:
        UserError: it refuses its arguments; ``key`` is named.
    """
    found = find_component(component["_component_"])
    if inspect.isclass(found):
        made = build(key, component)
        if not callable(made):
            raise UserError(f"{key}: a {component['_component_']} cannot be called")
        return made
    arguments = {str(name): _resolved(value) for name, value in component.items() if name != "_component_"}
    return functools.partial(found, **arguments)


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
        name, told = component["_component_"], one_line(error)
        if "could not parse ModelProto" in told:
            what = f"is no SentencePiece model, which {name} reads: a file such as tokenizer.model"
            other = "a folder with a tokenizer.json is for distill_tune.data.hf_tokenizer"
            raise UserError(f"{key}.path={component.get('path')}: {what}; {other}") from error
        raise UserError(f"{key}: {name}: {told}") from error


def find_component(name: str) -> Callable[..., Any]:
    """Import the callable with this dotted name, or that of ours that serves it.

    Raises:
        UserError: there is no such module or name; near names are listed.
    """
    if name.startswith("torchtune."):
        importlib.import_module("distill_tune._torchtune_compat")
    if "" in name.split("."):
        raise UserError(f"{name}: must be the dotted name of what to call")
    try:
        found = _found(_SERVED_BY.get(name, name))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if not callable(found):
        raise UserError(f"{name}: is a {type(found).__name__}, nothing that can be called")
    return found


def _found(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and not name.startswith(error.name):
            raise UserError(f"needs the package {error.name}; pip install {error.name}") from error
        within, _, last = name.rpartition(".")
        if not within:
            raise UserError(no_module(last)) from error
    if not hasattr(parent := _found(within), last):
        raise UserError(has_no(within, last, dir(parent)))
    return getattr(parent, last)


def check_components(config: DictConfig, may_import: Callable[[str], bool] = lambda name: True) -> list[str]:
    """Faults of every component's name and arguments; imports their modules, builds nothing.

    Args:
        may_import: whether a component of this name is looked at.
    """
    faults: list[str] = []
    for key, component in components_of(config):
        name = component["_component_"]
        if is_model(key) and is_cache(name):
            faults.append(f"{key}={name}: is a cache of a teacher; {how_to_read_cache(key, name)}")
        elif name.isidentifier() and may_import("distill_tune"):
            near = did_you_mean(components_meant(key, name))
            faults.append(f"{key}={name}: must be the dotted name of what to call{near}")
        elif may_import(name):
            try:
                faults += _argument_faults(key, component)
            except UserError as error:
                faults.append(f"{key}._component_={error}")
    return faults


def arguments_taken(key: str, name: str) -> set[str] | None:
    """The arguments that a config may give a component; None where any, or where that cannot be told."""
    with contextlib.suppress(UserError):  # told by check_components
        taken = _arguments_of(key, name)
        return None if taken.others else set(taken.given)
    return None


class _Arguments(NamedTuple):
    """What a config may give a component, what the recipe passes, and whether it takes any others."""

    given: dict[str, inspect.Parameter]
    passed: set[str]
    others: bool


def _arguments_of(key: str, name: str) -> _Arguments:
    component = find_component(name)
    parameters = inspect.signature(lambda **others: None).parameters  # as of what is written in C, without a signature
    for evaluated in (False, True):  # annotations that cannot be evaluated say nothing
        with contextlib.suppress(Exception):
            parameters = inspect.signature(component, eval_str=evaluated).parameters
    others = {p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD}
    passed, more = set[str](), set[str]()
    top, _, rest = key.partition(".")
    if not rest or rest.isdigit():
        by_place = int(not inspect.isclass(component)) if top in _FUNCTIONS else _PASSED_BY_PLACE.get(top, 0)
        passed = {*list(parameters)[:by_place], *_PASSED_BY_NAME.get(top, ())}
        more |= ENTRY_KEYS.get(top, set())
    more |= _SERVED_LOSS_ARGUMENTS if name in _SERVED_BY else set()
    more |= _LOAD_DATASET_KEYS if "load_dataset_kwargs" in others else set()
    given = dict.fromkeys(more, _ANYTHING)
    given |= {p.name: p for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for argument in given.keys() & _OPTIONAL_HERE.get(name.rpartition(".")[2], set()):
        given[argument] = given[argument].replace(default=None)
    given = {argument: parameter for argument, parameter in given.items() if argument not in passed}
    return _Arguments(given, passed, bool(others - {"load_dataset_kwargs"}))


def _argument_faults(key: str, component: DictConfig) -> Iterator[str]:
    name = component["_component_"]
    taken = _arguments_of(key, name)
    for argument in map(str, component):
        if argument in taken.passed:
            yield f"{key}.{argument}: the recipe passes this itself; leave it out"
        elif argument not in taken.given and not taken.others and argument != "_component_":
            there_are = f"it takes {', '.join(sorted(taken.given)) or 'none'}"
            given = f"{key}.{argument}={component[argument]}"
            if argument == "source" and name == "distill_tune.data.docstrings":
                there_are = f"for rows of your own: {key}=distill_tune.data.instruct {given} (or chat, or text)"
            if argument == "path" and name.startswith("torchtune.models.") and is_model(key):
                there_are = f"for a model's folder: {key}=distill_tune.models.from_hf {given}"
            if argument.startswith("lora_"):
                there_are = "a model with LoRA does, as in config tiny_lora"
            near = did_you_mean(nearest(argument, taken.given), otherwise=f"; {there_are}")
            if argument in KEYS:
                near = f"; it is a key of the config itself: {argument}={component[argument]}"
            yield f"{key}.{argument}: {name} has no such argument{near}"
    for argument, parameter in taken.given.items():
        if argument in component:
            value = component[argument]
            is_right = is_component(value) or f"{key}.{argument}" in _MORE_HERE
            value = OmegaConf.to_container(value) if isinstance(value, DictConfig | ListConfig) else value
            # Whatever its annotation says, a default is right (`path: str = None`); True is not 1.
            is_right |= type(value) is type(parameter.default) and bool(value == parameter.default)
            if not is_right and (wanted := _mismatch(value, _annotation_of(parameter))):
                yield f"{key}.{argument}={value}: must be {wanted}"
        elif parameter.default is parameter.empty:
            yield f"{key}.{argument}: missing; {name} needs it"
    if name in _SERVED_BY and (index := component.get("ignore_index", -100)) != -100:
        yield f"{key}.ignore_index={index}: must be -100, which marks unsupervised tokens everywhere here"


def _annotation_of(parameter: inspect.Parameter) -> Any:
    """Where there is none, the length of a default that is a tuple says what a value must have."""
    has_none = parameter.annotation is parameter.empty and isinstance(parameter.default, tuple)
    return tuple[(Any,) * len(parameter.default)] if has_none else parameter.annotation  # type: ignore[misc]


def _mismatch(value: Any, annotation: Any) -> str | None:
    """What a value would have to be, where it does not fit an annotation of plain types; unknown types fit all."""
    kind, arguments = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if kind in (typing.Union, types.UnionType):
        # In `float | Tensor` a plain value has to be the float; where no option is plain, anything may fit.
        if any(option in (int, float, bool, str) for option in arguments):
            arguments = tuple(o for o in arguments if o in _IN_WORDS or o is Any or typing.get_origin(o))
        mismatches = [_mismatch(value, option) for option in arguments]
        return None if None in mismatches else " or ".join(dict.fromkeys(filter(None, mismatches)))
    if kind is typing.Literal:
        choices = list(map(str, arguments))
        near = did_you_mean(nearest(str(value), choices))
        return None if value in arguments else f"one of {', '.join(choices)}{near}"
    if kind is list and isinstance(value, list) and arguments:
        return next((f"a list of {wanted}" for item in value if (wanted := _mismatch(item, arguments[0]))), None)
    if kind is tuple and arguments and ... not in arguments:
        has_as_many = isinstance(value, list) and len(value) == len(arguments)
        is_right = has_as_many and not any(map(_mismatch, value, arguments))
        return None if is_right else f"a list of {len(arguments)} values"
    if not isinstance(kind, type) or kind not in _IN_WORDS:
        return None
    fits = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
    return None if fits else _IN_WORDS[kind]


def _resolved(value: Any) -> Any:
    if is_component(value):
        return instantiate(value)
    if isinstance(value, DictConfig):
        return {key: _resolved(item) for key, item in value.items()}
    if isinstance(value, ListConfig):
        return [_resolved(item) for item in value]
    return value
