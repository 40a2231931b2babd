"""A component's parameters, read off its source without importing it: importing torch takes seconds, reading does not.

What cannot be told for sure (decorated functions, names made at run time) is left to the check that imports.
"""

import ast
import functools
import importlib.util
import os
from inspect import Parameter
from pathlib import Path

_MAX_HOPS = 8  # imports to follow from a package's __init__ to where the name is defined


def parameters_without_import(name: str) -> list[Parameter] | None:
    """The parameters of the function or class with this dotted name; None where the source does not say."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    module = Path(spec.origin)
    while len(rest) > 1:
        module_or_none = _submodule(module, rest.pop(0))
        if module_or_none is None:
            return None
        module = module_or_none
    return _find(rest[0], module, Path(spec.origin).parent.parent, _MAX_HOPS) if rest else None


def _find(name: str, module: Path, root: Path, hops: int) -> list[Parameter] | None:
    """Look ``name`` up in a module's top level, following imports."""
    if hops == 0:
        return None
    found: list[Parameter] | None = None
    for node in _parse(module).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            found = None if node.decorator_list else _parameters(node.args)
        elif isinstance(node, ast.ClassDef) and node.name == name:
            found = _of_class(node, module, root, hops)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                source = _imported(node, module, root) if (alias.asname or alias.name) == name else None
                if source is not None:
                    found = _find(alias.name, source, root, hops - 1)
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            found = _of_partial(node.value, module, root, hops)
    return found


def _of_class(node: ast.ClassDef, module: Path, root: Path, hops: int) -> list[Parameter] | None:
    if node.decorator_list or node.keywords:  # a dataclass, a metaclass
        return None
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    if "__new__" in methods:
        return None
    if "__init__" in methods:
        return None if methods["__init__"].decorator_list else _parameters(methods["__init__"].args)[1:]
    base = node.bases[0] if len(node.bases) == 1 else None
    return _find(base.id, module, root, hops - 1) if isinstance(base, ast.Name) else None


def _of_partial(value: ast.expr, module: Path, root: Path, hops: int) -> list[Parameter] | None:
    """``name = partial(function, key=...)``: the function's, those keys optional."""
    if not (isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "partial"):
        return None
    if len(value.args) != 1 or not isinstance(value.args[0], ast.Name):
        return None
    given = {keyword.arg for keyword in value.keywords}
    parameters = _find(value.args[0].id, module, root, hops - 1)
    return parameters and [p.replace(default=None) if p.name in given else p for p in parameters]


def _parameters(arguments: ast.arguments) -> list[Parameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    num_required = len(positional) - len(arguments.defaults)
    defaults = [Parameter.empty if index < num_required else None for index in range(len(positional))]
    parameters = [
        Parameter(argument.arg, Parameter.POSITIONAL_OR_KEYWORD, default=default)
        for argument, default in zip(positional, defaults, strict=True)
    ]
    parameters += [
        Parameter(argument.arg, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is None else None)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        parameters.append(Parameter(arguments.kwarg.arg, Parameter.VAR_KEYWORD))
    return parameters


def _imported(node: ast.ImportFrom, module: Path, root: Path) -> Path | None:
    """The file of ``from X import ...``, where it lies below the same top-level package."""
    folder = root
    if node.level:
        folder = module.parent
        for _ in range(node.level - 1):
            folder = folder.parent
    for part in (node.module or "").split("."):
        found = _submodule(folder / "__init__.py", part) if part else folder / "__init__.py"
        if found is None:
            return None
        folder, found_file = found.parent if found.name == "__init__.py" else found.with_suffix(""), found
    return found_file if os.path.isfile(found_file) else None


def _submodule(module: Path, name: str) -> Path | None:
    """``name`` below a package, given by its __init__.py."""
    candidates = (module.parent / name / "__init__.py", module.parent / f"{name}.py")
    return next((path for path in candidates if module.name == "__init__.py" and os.path.isfile(path)), None)


@functools.cache
def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return ast.Module([], [])
