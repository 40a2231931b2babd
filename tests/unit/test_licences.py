"""docs/licences.md is of what this version installs: each dependency is there, in a version that is tested."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def name_of(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_the_page_of_licences_has_every_dependency_in_a_version_that_is_tested():
    import tomllib

    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    told = {name_of(name): version for name, version in re.findall(r"^\| (\S+) \| ([\d.]\S*) \|", page, re.MULTILINE)}
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {name_of(requirement) for requirement in needed} <= told.keys()
    tested = re.findall(r"^([\w.-]+)==([^;\s]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    pinned = {(name_of(name), version) for name, version in tested}
    assert {(name, version.split("+")[0]) for name, version in told.items()} <= pinned
