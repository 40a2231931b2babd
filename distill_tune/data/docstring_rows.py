"""Instruction rows out of the docstrings of installed Python code: real text that every machine has.

Source files are parsed with :mod:`ast`, never imported. A row asks about one function or class; the answer is the
description in its docstring. Which side of the split a module is on is a hash of its name, so it is the same on every
machine, and no module is on both sides.
"""

import ast
import contextlib
import hashlib
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from distill_tune.collector import without_collections

HELD_OUT_SHARE = 0.1
MIN_ANSWER, MAX_ANSWER, MAX_SIGNATURE = 30, 400, 120  # characters

# Where a docstring's description ends and its lists, examples and tables begin.
_SECTION = re.compile(
    r"^(args|arguments|parameters|params|returns?|yields?|raises|examples?|notes?|see also|references|attributes|"
    r"usage|warnings?|keyword arguments|inputs?|outputs?|shape|todo)\s*:{0,2}\s*$|^(>>>|\.\. |:param|@|[-=~]{3,}|[|+])",
    re.IGNORECASE,
)
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_SKIPPED_FOLDERS = {"test", "tests", "testing", "idlelib", "lib2to3", "site-packages", "_vendor", "turtledemo"}


def is_held_out(module: str) -> bool:
    """Whether rows of this module (its dotted name) belong to the held-out side."""
    return _hash(module) / 2**64 < HELD_OUT_SHARE


def collect(
    num_rows: int | None = None, *, held_out: bool, min_characters: int = 0, folders: Sequence[Path] = ()
) -> list[dict[str, str]]:
    """Rows with the fields ``instruction``, ``output`` and ``module`` from one side of the split.

    Modules are visited in the order of their hashes, a mixture of all packages, until ``num_rows`` rows are found
    (default: all that there are). A docstring that several objects share gives one row, one of fewer than
    ``min_characters`` none. ``folders`` are searched besides the standard library and the installed packages.
    """
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    with without_collections():
        for module, path in sorted(_modules(folders), key=lambda item: _hash(item[0] + " order")):
            if is_held_out(module) != held_out:
                continue
            for row in rows_of_module(module, Path(path)):
                if row["output"] not in seen and len(row["output"]) >= min_characters:
                    seen.add(row["output"])
                    rows.append(row)
            if num_rows is not None and len(rows) >= num_rows:
                break
    return rows[:num_rows]


def sources_fingerprint(folders: Sequence[Path] = ()) -> str:
    """Changes when a source file that :func:`collect` may read comes, goes or is written to, as this one is."""
    found = hashlib.sha256()
    for module, path in [("", __file__), *sorted(_modules(folders))]:
        with contextlib.suppress(OSError):  # a link to nothing: no rows either
            status = os.stat(path)
            found.update(f"{module} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def rows_of_module(module: str, path: Path) -> Iterator[dict[str, str]]:
    """The rows of one source file; none where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError, RecursionError):
        return
    for name, node in _definitions(tree, module):
        answer = _description(ast.get_docstring(node, clean=False) or "")
        if answer:
            yield {"instruction": _question(name, node), "output": answer, "module": module}


def _modules(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(dotted name, file) of every module of the standard library, the installed packages and ``folders``."""
    installed = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")]
    seen = set()
    for root in dict.fromkeys([*installed, *folders]):
        for where, below, files in os.walk(root):  # some 30,000 files: pathlib takes nine times as long
            below[:] = filter(_is_taken, below)
            package = where.removeprefix(str(root)).replace(os.sep, ".")
            for name in files:
                stem = name.removesuffix(".py")
                if stem != name and _is_taken(stem):
                    module = f"{package}.{stem}".strip(".").removesuffix(".__init__")
                    if module not in seen:
                        seen.add(module)
                        yield module, os.path.join(where, name)


def _is_taken(name: str) -> bool:
    return name.isidentifier() and name not in _SKIPPED_FOLDERS


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            name = f"{prefix}.{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node, name)


def _question(name: str, node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        return f"What is the class {name}?"
    signature = f"{name}({ast.unparse(node.args)})"
    if len(signature) > MAX_SIGNATURE:
        signature = f"{name}({', '.join(argument.arg for argument in node.args.args)})"
    if len(signature) > MAX_SIGNATURE:
        signature = name
    return f"What does the function {signature} do?"


def _description(docstring: str) -> str:
    """The prose at the head of a docstring, unwrapped; whole paragraphs up to MAX_ANSWER characters, else nothing."""
    paragraphs: list[str] = [""]
    for line in inspect.cleandoc(docstring).splitlines():
        line = line.strip()
        if _SECTION.match(line):
            break
        if line:
            paragraphs[-1] = f"{paragraphs[-1]} {line}".strip()
        elif paragraphs[-1]:
            paragraphs.append("")
    answer = ""
    for paragraph in paragraphs:
        longer = f"{answer} {paragraph}".strip()
        if len(longer) > MAX_ANSWER:
            break
        answer = longer
    answer = answer.removesuffix("::").strip()
    return answer if len(answer) >= MIN_ANSWER and answer.isprintable() else ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def texts(rows: Iterable[dict[str, str]]) -> Iterator[str]:
    """Questions and answers as plain text, for a tokenizer to be trained on."""
    for row in rows:
        yield row["instruction"]
        yield row["output"]
