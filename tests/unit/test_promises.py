"""docs/reliability.md, docs/hardware.md and the tests agree: what a page names is there, and each test is named."""

import ast
import collections
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
# By page, the files whose tests are all named there; some of other files are as well.
FILES = {
    "reliability.md": (
        "recipes/test_bad_input.py",
        "recipes/test_interrupted.py",
        "recipes/test_interrupted_distributed.py",
        "recipes/test_resumed_distributed.py",
        "recipes/test_security.py",
        "unit/cache/test_killed.py",
        "unit/data/test_failing_files.py",
        "unit/test_properties.py",
        "unit/training/test_checkpoints.py",
    ),
    "hardware.md": (
        "recipes/test_cuda_branches.py",
        "unit/test_to_device.py",
        "unit/losses/test_chunk_memory.py",
        "unit/evaluation/test_speed_on_cuda.py",
        "unit/losses/test_head_on_cuda.py",
        "unit/models/test_flex.py",
        "unit/models/test_packed_flash.py",
        "unit/teachers/test_offload.py",
        "unit/teachers/test_quantisers.py",
        "unit/training/test_device.py",
        "unit/training/test_one_gpu.py",
    ),
}
# What a branch by device, package or version looks like.
BRANCH = re.compile(r"\.is_cuda|device\.type|device_type|torch\.cuda|\bmps\.|out_dtype|except ImportError|find_spec\(")


def functions_of(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def rows_of(page: str) -> list[str]:
    return [line for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines() if line.startswith("|")]


@pytest.mark.parametrize("page", FILES)
def test_each_promise_has_its_test_and_each_test_its_promise(page):
    named = collections.Counter(name for row in rows_of(page) for name in re.findall(r"`(test_\w+)`", row))
    there = collections.Counter(name for path in TESTS.rglob("test_*.py") for name in functions_of(path))
    assert {name: there[name] for name in named} == dict.fromkeys(named, 1)
    assert {name for file in FILES[page] for name in functions_of(TESTS / file)} <= set(named)
    assert set(named.values()) == {1}
    assert len(named) > 40


def test_each_file_that_asks_for_the_device_has_its_branch_on_the_page():
    named = {name for row in rows_of("hardware.md") for name in re.findall(r"`([\w/]+\.py)`", row)}
    package = ROOT / "distill_tune"
    asks = {path for path in package.rglob("*.py") if BRANCH.search(path.read_text(encoding="utf-8"))}
    assert {path.relative_to(package).as_posix() for path in asks} <= named
    assert all((package / name).is_file() for name in named)
