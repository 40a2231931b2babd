"""What a dataset's tokens depend on besides its rows: a tokenizer's files, a user's own code, versions, the date."""

import functools
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from modulefinder import _PKG_DIRECTORY, ModuleFinder  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import distill_tune
from distill_tune.config.nodes import components_of
from distill_tune.config.trust import KNOWN, is_known
from distill_tune.data.dates import today
from distill_tune.data.tokenizer import model_folder_of
from distill_tune.kept_digests import kept_digest

# Of a tokenizer's folder: vocabularies, merges, templates and every config, but not the weights that lie beside them.
_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm", ".bpe", ".py")
_TEMPLATES = "additional_chat_templates"
_PACKAGES = ("torchtune", "transformers", "tokenizers", "sentencepiece", "tiktoken", "jinja2", "datasets", "pyarrow")
_ASKS_FOR_THE_DATE = b"strftime_now"
_DOTTED_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_LONGEST_PATH = 4096


def identity_of(arguments: DictConfig, tokenizer_config: DictConfig) -> dict[str, Any] | None:
    """All that decides how a dataset's rows become tokens, so far as it can be known.

    Covered are

    - the arguments of dataset and tokenizer;
    - the files that the tokenizer reads: those that its arguments name, and all beside them or in the folders they name
      that can be part of a tokenizer, the templates of ``additional_chat_templates/`` included;
    - the run's date, where a template asks for one;
    - the source of components that are not of this package or torchtune, and of the modules that these import,
      directly or not, from folders of the user's own on the module search path; of installed packages, the version;
      and the files that the arguments of such components name;
    - the versions of the packages that read rows and tokenise.

    What such code reads from files of its own choice, or imports under a name that it makes up, is not seen.

    Returns:
        None where a component has no source to be read, as one that is made at run time.
    """
    files = _files_of_tokenizer(tokenizer_config)
    code: dict[str, str] = {}
    for config in (arguments, tokenizer_config):
        for name in _outside_names(config):
            if (found := _code_of(name)) is None:
                return None
            code |= found
        for _, component in components_of(config):
            if not is_known(str(component["_component_"])):
                code |= {str(file): kept_digest(file) for file in _paths(component) if file.is_file()}
    return {
        "dataset": OmegaConf.to_container(arguments),
        "tokenizer": OmegaConf.to_container(tokenizer_config),
        "files": {str(file): kept_digest(file) for file in files},
        "code": code,
        "date": today().date().isoformat() if any(map(_asks_for_the_date, files)) else None,
        "versions": [distill_tune.__version__, *map(_version, _PACKAGES)],
    }


def _files_of_tokenizer(config: DictConfig) -> list[Path]:
    """The files that a tokenizer's arguments name, and what lies in their folders and may be part of it."""
    files = set()
    for path in _paths(config):
        if path.is_file():
            files.add(path)
        folders = {path if path.is_dir() else path.parent, model_folder_of(path)}
        for folder in filter(Path.is_dir, folders):
            inside = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*")]
            files |= {file for file in inside if file.suffix in _SUFFIXES and not file.name.endswith(".index.json")}
    return sorted(file for file in files if file.is_file())


def _paths(config: DictConfig) -> list[Path]:
    """Every text below ``config`` as the path that it may be."""
    texts = [text for text in _texts(config) if "\0" not in text and len(os.fsencode(text)) < _LONGEST_PATH]
    return [path for text in texts if text and os.path.exists(path := Path(os.path.expanduser(text)))]


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _asks_for_the_date(file: Path) -> bool:
    return file.suffix in (".json", ".jinja") and _ASKS_FOR_THE_DATE in file.read_bytes()


def _outside_names(config: DictConfig) -> Iterator[str]:
    """Dotted names of components, and of what else the arguments name of modules that are imported by now."""
    components = {str(component["_component_"]) for _, component in components_of(config)}
    for text in dict.fromkeys(_texts(config)):
        if is_known(text) or not _DOTTED_NAME.fullmatch(text):
            continue
        if text in components or _module_of(text):
            yield text


def _module_of(name: str) -> str | None:
    """The module, imported by now, in which a dotted name is looked up."""
    while name and name not in sys.modules:
        name = name.rpartition(".")[0]
    return name or None


def _code_of(name: str) -> dict[str, str] | None:
    """What tells one state of the code behind a dotted name from another; None where nothing does."""
    module = _module_of(name)
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    if module is None or file is None or not os.path.isfile(file):
        return None
    if _is_installed(Path(file)):
        package = module.partition(".")[0]
        distributions = packages_distributions().get(package, [])
        return {package: " ".join(map(_version, distributions))} if distributions else {file: kept_digest(Path(file))}
    if not file.endswith(".py"):
        return None
    finder = _Finder(_own_folders(Path(file), module), excludes=sorted(KNOWN))
    try:
        finder.run_script(file) if module == "__main__" else finder.import_hook(module)
    except (ImportError, SyntaxError, OSError, AttributeError):  # the last of a package without __init__.py
        return None
    found = {str(other.__file__) for other in finder.modules.values() if other.__file__}  # type: ignore[attr-defined]
    return {other: kept_digest(Path(other)) for other in sorted({file, *found}) if os.path.isfile(other)}


class _Finder(ModuleFinder):
    """Goes into packages without an __init__.py too, over which Python's own stumbles."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        try:
            return super().find_module(name, path, parent)
        except AttributeError:
            spec = PathFinder.find_spec(name, path or self.path)
            if spec is None or not spec.submodule_search_locations:
                raise ImportError(name=name) from None
            return None, next(iter(spec.submodule_search_locations)), ("", "", _PKG_DIRECTORY)

    def load_package(self, fqname: str, pathname: str) -> Any:
        if os.path.isfile(os.path.join(pathname, "__init__.py")):
            return super().load_package(fqname, pathname)  # type: ignore[misc]
        package: Any = self.add_module(fqname)
        package.__path__ = [pathname]
        return package


def _own_folders(file: Path, module: str) -> list[str]:
    """Where the user's own modules are looked for: the folder that ``module`` is imported from, and those like it."""
    levels = 0 if module == "__main__" else module.count(".") + (file.name == "__init__.py")
    folders = [file.resolve().parents[levels], *(Path(folder).resolve() for folder in sys.path)]
    return [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir() and not _is_installed(folder)]


def _is_installed(path: Path) -> bool:
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return any(path.resolve().is_relative_to(Path(folder).resolve()) for folder in installed)


@functools.cache
def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"
