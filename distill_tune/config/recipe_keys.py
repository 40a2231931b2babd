"""Which top-level keys a config for a recipe may have and needs.

Those of a shipped recipe stand in a table. A copy reads others, too, in ways that no reading of its source can follow
(a helper in another module, a name put together): what it names is taken, what is spelled almost as a known key is a
fault, and what is neither is left to it.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from distill_tune.config.files import nearest, recipes_folder
from distill_tune.config.keys import KEYS, Needed
from distill_tune.config.trust import KNOWN
from distill_tune.errors import UserError

_INTERPOLATION = re.compile(r"\$\{\s*([A-Za-z_]\w*)")
# An attribute that is not called, or text in quotes, up to a dot or bracket in it.
_NAMES = re.compile(r"""\.([A-Za-z_]\w*)\b(?!\s*\()|["']([A-Za-z_]\w*)(?:[.\[][^"'\n]*)?["']""")
_READ_OF_CFG = re.compile(r"""\bcfg(?:\.get\(\s*["']|\[["']|\.)([A-Za-z_]\w*)""")
_ALMOST = 0.8  # of difflib: kd_raito and kd_ratio have 0.88, mode and model 0.89, my_model and model 0.77


def is_distributed(recipe: Path) -> bool:
    """Whether a recipe joins other processes: whether it calls ``init_distributed``."""
    return re.search(r"\binit_distributed\b", _text_of(recipe)) is not None


def check_keys(config: DictConfig, recipe: Path, source: str, overrides: Sequence[str] = ()) -> list[str]:
    """Faults of the top-level keys.

    Args:
        source: the YAML text, whose ``${key}`` also count as reading a key.
        overrides: the command line's. A key that another shipped recipe reads may stand in a file, since one file
            serves all, but not here, where it would be ignored.

    Raises:
        UserError: the recipe is no Python, or nothing in it starts one.
    """
    text = _text_of(recipe)
    is_shipped = _is_shipped(recipe)
    named, own = (set[str](), set[str]()) if is_shipped else _named_in(recipe, text)
    asked = {re.split(r"[.=]", override.lstrip("+~"))[0] for override in overrides}
    faults = []
    for key in map(str, config):
        if key in named or key in _INTERPOLATION.findall(source):
            continue
        if key in KEYS:
            if key in asked and KEYS[key].distributed and not is_distributed(recipe):
                faults.append(f"{key}: {recipe.stem} does not read it; kd_distributed does")
            if key in asked and is_shipped and KEYS[key].recipe not in (None, recipe.stem):
                faults.append(f"{key}: {recipe.stem} does not read it; {KEYS[key].recipe} does")
        elif is_shipped:
            faults.append(f"{key}: no such key{_suggest(key, config)}")
        elif near := [*difflib.get_close_matches(key, {*KEYS, *own}, 3, _ALMOST), *_inside(key, config)]:
            faults.append(f"{key}: no such key, did you mean {' or '.join(near)}?")
    if is_shipped:
        missing = [key for key in KEYS if KEYS[key].recipe == recipe.stem and config.get(key) is None]
        faults += [f"{key}: missing; {recipe.stem} needs it: {KEYS[key].meaning}" for key in missing]
    needed = [key for key in sorted(KEYS) if key not in config and isinstance(KEYS[key].default, Needed)]
    return faults + [f"{key}: missing; the recipe needs it" for key in needed if is_shipped or _needs(text, key)]


def unnamed_keys(config: DictConfig, recipe: Path, source: str) -> list[str]:
    """A line for each key that neither the table nor a copied recipe names, which most likely nothing reads."""
    if _is_shipped(recipe):
        return []
    named = {*KEYS, *_named_in(recipe, _text_of(recipe))[0], *_INTERPOLATION.findall(source)}
    return [f"{key}: {recipe.name} does not name it; does it read it?" for key in map(str, config) if key not in named]


def keys_read_otherwise(recipe: Path) -> set[str]:
    """Known keys that a recipe names in a line that no shipped one has, or in a module of its folder."""
    lines_of_ours = {line for path in recipes_folder().glob("*.py") for line in _text_of(path).splitlines()}
    text = _text_of(recipe)
    texts = [line for line in text.splitlines() if line not in lines_of_ours]
    texts += [] if _is_shipped(recipe) else _texts_beside(recipe, text)
    return {name for found in texts for pair in _NAMES.findall(found) for name in pair} & set(KEYS)


def _is_shipped(recipe: Path) -> bool:
    return recipe.resolve().parent == recipes_folder().resolve()


def _text_of(recipe: Path) -> str:
    """
    Raises:
        UserError: it is no Python, or nothing in it starts a recipe.
    """
    try:
        content = recipe.read_bytes()
        ast.parse(content, str(recipe))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"recipe {recipe}: not valid Python: {error}") from error
    text = content.decode("utf-8-sig", errors="replace")
    if "run_recipe" not in text and not any("run_recipe" in found for found in _texts_beside(recipe, text)):
        raise UserError(f"recipe {recipe}: nothing in it calls distill_tune.config.run_recipe, which starts a recipe")
    return text


def _named_in(recipe: Path, text: str) -> tuple[set[str], set[str]]:
    """All names in a recipe and in the modules of its folder that it may import, and those that it reads of ``cfg``."""
    texts = [text, *_texts_beside(recipe, text)]
    named = {name for found in texts for pair in _NAMES.findall(found) for name in pair if name}
    return named, {name for found in texts for name in _READ_OF_CFG.findall(found)} - set(dir(DictConfig))


def _texts_beside(recipe: Path, text: str) -> Iterator[str]:
    words = set(re.findall(r"\w+", text)) - KNOWN - {recipe.stem}
    for folder in dict.fromkeys((recipe.resolve().parent, Path.cwd())):
        for word in sorted(words):
            modules: Iterable[Path] = [folder / f"{word}.py"]
            if (folder / word / "__init__.py").is_file():
                modules = (folder / word).rglob("*.py")
            yield from (path.read_text(encoding="utf-8-sig", errors="replace") for path in modules if path.is_file())


def _needs(text: str, key: str) -> bool:
    """Whether a copy fails without a key for sure: it reads it plainly, or calls what does, and nowhere asks for it."""
    reader = KEYS[key].default.by
    reads = re.search(rf"\bcfg\.{key}\b", text) or (reader and re.search(rf"\b{reader}\(", text))
    asks_or_sets = re.search(rf"""["']{key}["']|\bcfg\.{key}\s*=[^=]""", text)
    return bool(reads) and not asks_or_sets


def _suggest(key: str, config: DictConfig) -> str:
    nested = {path.rpartition(".")[2]: path for path in _nested_keys(config, "") if path.partition(".")[0] in KEYS}
    found = nearest(key, KEYS) or _inside(key, config) or [nested[last] for last in nearest(key, nested)]
    return f", did you mean {' or '.join(found)}?" if found else ", and nothing would read it"


def _inside(key: str, config: DictConfig) -> list[str]:
    """The arguments of components that are called so, or end so: warmup_steps is lr_scheduler.num_warmup_steps."""
    nested = (path for path in _nested_keys(config, "") if "." in path and path.partition(".")[0] in KEYS)
    found = {last: path for path in nested if (last := path.rpartition(".")[2]) == key or last.endswith(f"_{key}")}
    return list(found.values())


def _nested_keys(node: DictConfig | ListConfig, prefix: str) -> list[str]:
    found = []
    items = node.items() if isinstance(node, DictConfig) else enumerate(node)
    for key, value in items:
        found.append(f"{prefix}{key}")
        if isinstance(value, DictConfig | ListConfig):
            found += _nested_keys(value, f"{prefix}{key}.")
    return found
