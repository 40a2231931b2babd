"""docs/reliability.md and the tests agree: each promise names a test that is there, each test of these is promised."""

import ast
import collections
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "reliability.md"
# Whose tests are all promises; some of other files are promised as well.
FILES = (
    "recipes/test_bad_input.py",
    "recipes/test_interrupted.py",
    "recipes/test_interrupted_distributed.py",
    "recipes/test_security.py",
    "unit/data/test_failing_files.py",
    "unit/test_properties.py",
    "unit/training/test_checkpoints.py",
)


def functions_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_each_promise_has_its_test_and_each_test_its_promise():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    promised = collections.Counter(name for row in rows for name in re.findall(r"`(test_\w+)`", row))
    there = {name for path in TESTS.rglob("test_*.py") for name in functions_of(path)}
    assert set(promised) <= there
    assert {name for file in FILES for name in functions_of(TESTS / file)} <= set(promised)
    assert set(promised.values()) == {1}
    assert len(promised) > 50
