"""A config file with the command line's overrides applied."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill_tune.config.components import arguments_taken
from distill_tune.config.files import demo_model_folder
from distill_tune.config.keys import KEYS, LIST_OF_COMPONENTS
from distill_tune.config.kinds import COMPONENT, COMPONENTS
from distill_tune.config.nodes import children_of, is_component, nodes_of
from distill_tune.errors import CollectedFaults, Faults, UserError, one_line

_LISTS = (COMPONENTS.fits, LIST_OF_COMPONENTS.fits)  # of kinds that may be a list of components
_QUOTED, _PLAIN, _REFERENCE = r"""(?:"[^"]*"|'[^']*')""", r"(?:[^\s,\[\]{}$]|\$(?!\{))*", r"\$\{(?:[^{}]|\{[^{}]*\})*\}"
_INTERPOLATED = re.compile(rf"({_QUOTED})|({_PLAIN}(?:{_REFERENCE}{_PLAIN})+)")
_OF_ANOTHER = re.compile(r"\$\{([^{}:]+)\}")

# `${demo_model:teacher}` in a config: a model that travels with the package.
OmegaConf.register_resolver("demo_model", lambda name: str(demo_model_folder(name)), replace=True)


@contextlib.contextmanager
def _told_as(what: str) -> Iterator[None]:
    """Whatever YAML and OmegaConf refuse, as a UserError that begins with ``what``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {one_line(error)}") from error


def load_config(
    path: Path,
    overrides: Sequence[str] = (),
    may_import: Callable[[str], bool] = lambda name: False,
    say: Callable[[str], None] = lambda line: None,
) -> DictConfig:
    """Read a YAML file and apply overrides to it, in order.

    ``key=value`` and ``a.b=value`` set, ``+key=value`` adds what is not there yet, ``~key`` removes. Values are YAML. A
    component takes its new name directly: ``model=torchtune.models.llama3_2.llama3_2_1b``, and so does a key that is a
    component and that the file does not have.

    Args:
        may_import: whether a component of this name may be looked at. One that an override puts in another's place
            keeps those of the file's arguments that it takes.
        say: is told of each that loses others.

    Raises:
        UserError: the file cannot be read, or is no YAML mapping; an override or interpolation cannot be applied.
    """
    with _told_as(f"config {path}: not valid YAML"):
        try:
            config = OmegaConf.load(path)
        except OSError as error:
            raise UserError(f"config {path}: cannot be read: {error.strerror}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"config {path}: must be a mapping of keys, found {type(config).__name__}")
    faults = CollectedFaults("the command line")
    replaced = dict[str, str]()
    for override in overrides:
        with faults:
            _apply(config, override, replaced)
    faults.tell()
    with _told_as(f"config {path}"):
        OmegaConf.resolve(config)
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise Faults(f"config {path}", [f"{key}=???: has no value yet; give it one" for key in missing])
    given = [override.lstrip("+").partition("=")[0] for override in overrides]
    for key, was in replaced.items():
        component = OmegaConf.select(config, key)
        if is_component(component) and component["_component_"] != was and may_import(component["_component_"]):
            for line in _drop_arguments(config, key, was, given):
                say(line)
    _expand_home(config)
    if isinstance(profiler := config.get("profiler"), DictConfig):
        profiler.setdefault("_component_", "torchtune.training.setup_torch_profiler")
    return config


def _expand_home(config: DictConfig) -> None:
    """Read ``~/`` in every path. What else a value may be never begins so, but for text that a model reads."""
    for _, node in list(nodes_of(config)):
        for key, value in children_of(node):
            is_path = isinstance(value, str) and value.startswith("~") and "/" in value
            if is_path and not str(key).endswith(("prompt", "prompt_template")):
                node[key] = os.path.expanduser(value)


def read_value(override: str) -> Any:
    """The YAML behind ``key=``.

    Raises:
        UserError: it is none.
    """
    with _told_as(f"{override}: the value is not valid YAML"):
        read = OmegaConf.from_dotlist([f"value={_quoted(override.partition('=')[2])}"])
        return OmegaConf.to_container(read, resolve=False)["value"]  # type: ignore[call-overload,index]


def _quoted(text: str) -> str:
    """YAML with what has ``${...}`` in quotes, where its braces, blanks and colons would be taken for YAML's own."""
    if text.lstrip().startswith(("[", "{")):
        return _INTERPOLATED.sub(lambda found: found[1] or _in_quotes(found[2]), text)
    return _in_quotes(text) if "${" in text and text[0] not in "\"'" else text


def _in_quotes(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _of_components(config: DictConfig, key: str, value: Any) -> Any:
    """A list of names as one of components, of a key that takes such."""
    if not isinstance(value, list) or key not in KEYS or KEYS[key].kind.fits not in _LISTS:
        return value
    return [{"_component_": entry} if _is_text(config, entry) else entry for entry in value]


def _is_text(config: DictConfig, value: Any) -> bool:
    """Whether it is none of YAML's other values, nor ``${key}`` of a key that has a component."""
    if not isinstance(value, str):
        return False
    other = _OF_ANOTHER.fullmatch(value)
    return other is None or not is_component(OmegaConf.select(config, other[1], throw_on_resolution_failure=False))


def _apply(config: DictConfig, override: str, replaced: dict[str, str]) -> None:
    """Note in ``replaced``, by key, the name of a component in whose place another is put."""
    if override.startswith("~"):
        _remove(config, override[1:].partition("=")[0])
        return
    key, equals, text = override.partition("=")
    if not equals or not key.strip("+"):
        raise UserError(f"{override}: not an override; write key=value, +key=value or ~key")
    adds = key.startswith("+")
    key = key.removeprefix("+")
    # What a model is asked is a text as it stands, colons and all.
    is_asked = key.lstrip("+") == "prompt" and text != "null"
    value = text if is_asked else _of_components(config, key, read_value(override))
    with _told_as(f"{override}: cannot be set"):
        present = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if adds and present is not None:
            raise UserError(f"{override}: {key} is there already; leave out the +")
        is_new = present is None and key in KEYS and KEYS[key].kind.fits in (COMPONENT.fits, COMPONENTS.fits)
        if _is_text(config, value) and (is_component(present) or (is_new and ("." in value or value.isidentifier()))):
            key = f"{key}._component_"
        was = OmegaConf.select(config, key, throw_on_resolution_failure=False)
        if key.endswith("._component_") and isinstance(was, str):
            replaced.setdefault(key.removesuffix("._component_"), was)
        OmegaConf.update(config, key, value, merge=False, force_add=True)


def _drop_arguments(config: DictConfig, key: str, was: str, given: Sequence[str]) -> Iterator[str]:
    """Drop what the file gives another component, where the new one does not take it."""
    component, checkpointer = OmegaConf.select(config, key), key.replace("model", "checkpointer")
    if (taken := arguments_taken(key, component["_component_"])) is None:
        return
    if f"{key}.path" in given and checkpointer in config and not any(w.startswith(checkpointer) for w in given):
        del config[checkpointer]
        yield f"{checkpointer}: is of the model that the file names; {key}.path has the new one's weights: left out"
    is_given = {a for a in map(str, component) if any(f"{w}.".startswith(f"{key}.{a}.") for w in given)}
    if dropped := [a for a in map(str, component) if a not in taken | is_given | {"_component_"}]:
        for argument in dropped:
            del component[argument]
        told = f"{component['_component_']} does not take {', '.join(dropped)}"
        yield f"{key}: {told}, which the file gives {was}: left out"


def _remove(config: DictConfig, key: str) -> None:
    parent_key, _, last = key.rpartition(".")
    try:
        parent = OmegaConf.select(config, parent_key) if parent_key else config
        del parent[int(last) if isinstance(parent, ListConfig) else last]
    except (OmegaConfBaseException, TypeError, LookupError, ValueError) as error:
        raise UserError(f"~{key}: there is no {key} to remove") from error
