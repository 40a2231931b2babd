"""A config as a tree: what is in it, by dotted key, and which of it are components."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig


def nodes_of(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a node and of everything below it."""
    yield key, node
    for name, value in children_of(node):
        yield from nodes_of(value, f"{key}.{name}" if key else str(name))


def children_of(node: Any) -> Iterable[tuple[Any, Any]]:
    """(key or index, value) of what a mapping or a list has."""
    if isinstance(node, DictConfig | dict):
        return node.items()
    return enumerate(node) if isinstance(node, ListConfig | list) else ()


def is_component(node: Any) -> bool:
    """Whether it names with ``_component_`` what to call."""
    return isinstance(node, DictConfig) and "_component_" in node and isinstance(node["_component_"], str)


def components_of(node: Any) -> Iterator[tuple[str, DictConfig]]:
    """(dotted key, component) of a node, where it is one, and of all below it."""
    return ((key, value) for key, value in nodes_of(node) if is_component(value))


def is_model(key: str) -> bool:
    """Whether a component's key is the student's or a teacher's."""
    return re.fullmatch(r"model|teacher_model(\.\d+)?", key) is not None
