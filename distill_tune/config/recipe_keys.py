"""Which top-level keys a config for a recipe may have and needs.

Those of a shipped recipe stand in a table. A copy reads others, too, in ways that no reading of its source can follow
(a helper in another module, a name put together): what it names is taken, what is spelled almost as a known key is a
fault, and what is neither is left to it, and told.
"""

import ast
import functools
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig

from distill_tune.config.files import config_names, folders_of_own_modules, recipes_folder
from distill_tune.config.keys import KEYS, READ_BY, Needed
from distill_tune.config.nearest import did_you_mean, nearest
from distill_tune.config.nodes import nodes_of
from distill_tune.config.other_tools import OURS, WITHOUT_A_KEY
from distill_tune.config.trust import KNOWN
from distill_tune.errors import UserError

_INTERPOLATION = re.compile(r"\$\{\s*([A-Za-z_]\w*)")
# An attribute that is not called, or text in quotes, up to a dot or bracket in it.
_NAMES = re.compile(r"""\.([A-Za-z_]\w*)\b(?!\s*\()|["']([A-Za-z_]\w*)(?:[.\[][^"'\n]*)?["']""")
_READ_OF_CFG = re.compile(r"""\bcfg(?:\.get\(\s*["']|\[["']|\.)([A-Za-z_]\w*)""")
_IMPORTED = re.compile(r"^\s*(?:from|import)\s+([A-Za-z_]\w*)", re.MULTILINE)
_READ_OR_KNOWN = KNOWN | sys.stdlib_module_names | {"numpy", "omegaconf"}  # packages that read no key
_TRAIN_NOTHING = {"prepare_answers": "generate", "prepare_evaluation": "evaluate"}  # by what they call
_PATHS = "models_dir"  # of shipped configs, for others to refer to
_LIKE = 0.75  # of difflib, where nothing else can be meant: adapter and date have 0.73
_ALMOST = 0.8  # of difflib: kd_raito and kd_ratio have 0.88, mode and model 0.89, my_model and model 0.77


class Recipe:
    """What the text of a recipe tells of the keys that it reads.

    Attributes:
        is_shipped: whether it is no copy.
        is_distributed: whether it joins other processes: whether it calls ``init_distributed``.
        reads_as: the shipped recipe that trains nothing which it is, or is a copy of, by what it calls; None of others.
        names: all in a copy, and in the modules of its folder that it may import; known keys in a shipped one.
        reads: those of them that are read of ``cfg``.
        imports_unread: whether it, or such a module, imports one that is not read here and may read any key.
        reads_otherwise: known keys that are named in a line that no shipped recipe has, or in such a module.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: it is no Python, or nothing in it starts a recipe.
        """
        try:
            content = path.read_bytes()
            _parse(content, path)
        except (SyntaxError, ValueError) as error:
            raise UserError(f"recipe {path}: not valid Python: {error}") from error
        self.path = path
        self.text = content.decode("utf-8-sig", errors="replace")
        self.is_shipped = path.resolve().parent == recipes_folder().resolve()
        self.is_distributed = re.search(r"\binit_distributed\b", self.text) is not None
        called = (name for name, recipe in _TRAIN_NOTHING.items() if re.search(rf"\b{name}\b", self.text))
        self.reads_as = next((_TRAIN_NOTHING[name] for name in called), None)
        self.names = _names_in([self.text]) & set(KEYS)
        self.reads, self.reads_otherwise, self.imports_unread = set[str](), set[str](), False
        if self.is_shipped:
            return
        words = sorted(set(re.findall(r"\w+", self.text)) - KNOWN - {path.stem})
        files = [file for word in words for file in _files_of(word, path)]
        beside = [file.read_text(encoding="utf-8-sig", errors="replace") for file in files]
        texts = [self.text, *beside]
        if not any("run_recipe" in text for text in texts):
            raise UserError(f"recipe {path}: nothing in it calls distill_tune.config.run_recipe, which starts a recipe")
        shipped = {line for ours in recipes_folder().glob("*.py") for line in ours.read_text("utf-8").splitlines()}
        lines = [line for line in self.text.splitlines() if line not in shipped]
        self.names = _names_in(texts)
        self.reads = {name for text in texts for name in _READ_OF_CFG.findall(text)} - set(dir(DictConfig))
        imported = {name for text in texts for name in _IMPORTED.findall(text)} - _READ_OR_KNOWN
        self.imports_unread = not all(any(_files_of(name, path)) for name in imported)
        self.reads_otherwise = _names_in([*lines, *beside]) & set(KEYS)

    def needs(self, key: str) -> bool:
        """Whether it fails without a key for sure: it reads it plainly, or calls what does, and nowhere asks for it."""
        if self.is_shipped and not self.reads_as:
            return not KEYS[key].recipes or self.path.stem in KEYS[key].recipes
        by = KEYS[key].default.by
        reads = re.search(rf"\bcfg\.{key}\b", self.text) or (by and re.search(rf"\b{by}\(", self.text))
        asks_or_sets = re.search(rf"""["']{key}["']|\bcfg\.{key}\s*=[^=]""", self.text)
        return bool(reads) and not asks_or_sets


@functools.cache  # a run asks three times
def _parse(content: bytes, path: Path) -> None:
    """
    Raises:
        SyntaxError, ValueError: it is no Python.
    """
    ast.parse(content, str(path))


def check_keys(
    config: DictConfig, recipe: Recipe, source: str, overrides: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Faults of the top-level keys, and a line for each that most likely nothing reads.

    Args:
        source: the YAML text, whose ``${key}`` also count as reading a key.
        overrides: the command line's, whose ``${key}`` count, too. A key that another shipped recipe reads may stand in
            a file, since one file serves all, but not here, where it would be ignored.
    """
    read = recipe.names.union(_INTERPOLATION.findall(" ".join([source, *overrides])))
    asked = {re.split(r"[.=]", override.lstrip("+~"))[0] for override in overrides}
    faults, unread, of_others = list[str](), list[str](), list[str]()
    for key in map(str, config):
        if key in read:
            continue
        if key in KEYS:
            known = KEYS[key]
            is_for_some = bool(known.recipes) and recipe.path.stem not in known.recipes
            is_of_other = is_for_some and not any(map(config.get, known.beside))
            if key in asked and is_of_other and not recipe.imports_unread:
                without = f" without {' or '.join(known.beside)}" if known.beside else ""
                others = " or ".join(known.recipes)
                faults.append(f"{key}: {recipe.path.stem} does not read it{without}; the recipe {others} does")
            elif key in asked and recipe.is_shipped and recipe.reads_as and key not in READ_BY[recipe.reads_as]:
                faults.append(f"{key}: {recipe.path.stem} does not read it; recipes that train do")
            if key in asked and key == recipe.path.stem:
                faults.append(f"{key}: the recipe {recipe.path.stem} does not read it; it writes to output_dir")
        elif recipe.is_shipped and key in (OURS | WITHOUT_A_KEY):
            ours = did_you_mean([OURS[key]] if key in OURS else (), f"; {WITHOUT_A_KEY.get(key)}")
            of_others.append(f"{key}: no such key{ours}")
        elif recipe.is_shipped and key == _PATHS:
            faults.append(f"{key}: nothing reads it, since no path has ${{{key}}}; leave it out")
        elif (near := _meant_by(key, config, recipe)) or recipe.is_shipped:
            told = f"{key}: no such key{did_you_mean(near, otherwise=', and nothing would read it')}"
            (unread if recipe.imports_unread else faults).append(told)
        else:
            unread.append(f"{key}: {recipe.path.name} does not name it; does it read it?")
    if len(of_others) > 1:
        configs = ", ".join(name for name in config_names() if name.startswith("migrate/"))
        told = f"these are keys of another tool: docs/migrate.md has ours beside them; configs: {configs}"
        of_others[-1] += f"\n  {told}"
    faults += of_others
    needed = [key for key in sorted(KEYS) if key not in config and isinstance(KEYS[key].default, Needed)]
    faults += [f"{key}: missing; the recipe needs it: {KEYS[key].meaning}" for key in needed if recipe.needs(key)]
    return faults, unread


def _meant_by(key: str, config: DictConfig, recipe: Recipe) -> list[str]:
    """Keys like one that there is not, or components' arguments: warmup_steps is lr_scheduler.num_warmup_steps."""
    nested = {path.rpartition(".")[2]: path for path, _ in nodes_of(config) if path.partition(".")[0] in KEYS}
    inside = [path for last, path in nested.items() if "." in path and (last == key or last.endswith(f"_{key}"))]
    if not recipe.is_shipped:
        return nearest(key, {*KEYS, *recipe.reads}, _ALMOST) or inside
    its = [name for name, known in KEYS.items() if not known.recipes or recipe.path.stem in known.recipes]
    return nearest(key, its, _LIKE) or inside or [nested[last] for last in nearest(key, nested, _LIKE)]


def _names_in(texts: Iterable[str]) -> set[str]:
    return {name for text in texts for pair in _NAMES.findall(text) for name in pair if name}


def _files_of(module: str, recipe: Path) -> Iterator[Path]:
    """Of a module or package beside the recipe or in the current folder."""
    for folder in map(Path, dict.fromkeys(folders_of_own_modules(recipe))):
        is_package = (folder / module / "__init__.py").is_file()
        yield from (folder / module).rglob("*.py") if is_package else folder.glob(f"{module}.py")
