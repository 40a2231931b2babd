"""Which top-level keys a recipe reads, told from its source, so that a wrong key is found without running it."""

import ast
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.files import nearest, recipes_folder
from distill_tune.errors import UserError

_MAPPING_METHODS = {"copy", "get", "items", "keys", "pop", "setdefault", "values"}
# Its functions read keys for the recipes that call them.
_PREPARATION = Path(__file__).parents[1] / "training" / "preparation.py"
_INTERPOLATION = re.compile(r"\$\{\s*([A-Za-z_]\w*)")


@dataclasses.dataclass(frozen=True)
class RecipeKeys:
    """The keys that a recipe reads: ``cfg.key`` must be there, ``cfg.get("key")`` may be."""

    required: frozenset[str]
    optional: frozenset[str]

    @property
    def all(self) -> frozenset[str]:
        return self.required | self.optional


def keys_of_recipe(path: Path) -> RecipeKeys:
    """
    Raises:
        UserError: the file is no Python, or has no ``main(cfg)``.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"recipe {path}: not valid Python: {error}") from error
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main" and node.args.args]
    if not mains:
        raise UserError(f"recipe {path}: has no function main(cfg)")
    required, optional = _keys_in(tree, mains[0].args.args[0].arg)
    body = ast.parse(_PREPARATION.read_text(encoding="utf-8")).body
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    called = _names_called_in(tree)
    while function := next((functions.pop(name) for name in list(functions) if name in called), None):
        found = _keys_in(function, function.args.args[0].arg)
        required, optional = required | found[0], optional | found[1]
        called |= _names_called_in(function)
    return RecipeKeys(frozenset(required - optional), frozenset(optional - {""}))


def is_distributed(path: Path) -> bool:
    """Whether a recipe joins other processes: whether it calls ``init_distributed``."""
    return "init_distributed" in _names_called_in(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))


def check_keys(config: DictConfig, recipe: Path, source: str, overrides: Sequence[str] = ()) -> list[str]:
    """Faults of the top-level keys.

    Args:
        source: the YAML text, whose ``${key}`` also count as reading a key.
        overrides: the command line's. A key that another shipped recipe reads may stand in a file, since one file
            serves all, but not here, where it would be ignored.
    """
    keys = keys_of_recipe(recipe)
    known = keys.all
    used = set(_INTERPOLATION.findall(source))
    asked = {re.split(r"[.=]", override.lstrip("+~"))[0] for override in overrides}
    faults = []
    written = [str(key) for key in config]
    for key in sorted(set(written) - known - used, key=written.index):
        others = [path.stem for path in sorted(recipes_folder().glob("*.py")) if key in keys_of_recipe(path).all]
        if others and key in asked:
            faults.append(f"{key}: {recipe.stem} does not read it; {' and '.join(others)} does")
        elif not others:
            faults.append(f"{key}: no such key{_suggest(key, config, known)}")
    faults += [f"{key}: missing; the recipe needs it" for key in sorted(keys.required) if key not in config]
    return faults


def _keys_in(tree: ast.AST, name: str) -> tuple[set[str], set[str]]:
    """The required and the optional keys that are read of the config of this name."""
    required, optional = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_config(node.value, name) and node.attr not in _MAPPING_METHODS:
            required.add(node.attr)
        elif isinstance(node, ast.Subscript) and _is_config(node.value, name) and _text(node.slice):
            required.add(_text(node.slice))
        elif isinstance(node, ast.Call) and _is_get(node.func, name) and node.args:
            optional.add(_text(node.args[0]))
    return required, optional


def _names_called_in(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(tree) if isinstance(node, ast.Call)}


def _suggest(key: str, config: DictConfig, known: frozenset[str]) -> str:
    nested = {path.rpartition(".")[2]: path for path in _nested_keys(config, "") if path.partition(".")[0] in known}
    inside = [path for last, path in nested.items() if last.endswith(f"_{key}") or last == key]
    found = nearest(key, known) or inside or [nested[last] for last in nearest(key, nested)]
    return f", did you mean {' or '.join(found)}?" if found else ", and nothing would read it"


def _nested_keys(node: DictConfig | ListConfig, prefix: str) -> list[str]:
    found = []
    items = node.items() if isinstance(node, DictConfig) else enumerate(node)
    for key, value in items:
        found.append(f"{prefix}{key}")
        if OmegaConf.is_config(value):
            found += _nested_keys(value, f"{prefix}{key}.")
    return found


def _is_config(node: ast.expr, name: str) -> bool:
    return (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Attribute) and node.attr == name)


def _is_get(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "get" and _is_config(node.value, name)


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
