"""Files of config/ depend one way, imports inside of functions counted."""

import ast
import graphlib
from pathlib import Path

from distill_tune import config


def imported_by(path: Path) -> set[str]:
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module]
    return {node.module.rpartition(".")[2] for node in nodes if node.module.startswith("distill_tune.config.")}


def test_no_two_files_need_each_other():
    files = Path(config.__file__).parent.glob("*.py")
    graph = {path.stem: imported_by(path) for path in files}
    assert graph["recipe_keys"] >= {"keys", "files"}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError where there is a circle
    assert order.index("keys") < order.index("values") < order.index("components") < order.index("check")
