"""In what the configs of runs differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Where a run writes, and how it is resumed: another in each, and nothing that a result comes from.
_ABOUT_THE_RUN = ("output_dir", "log_dir", "resume", "resume_from_checkpoint", "resume_with_changes", "date")
NOT_SET = "–"


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """By dotted key the value in each config, of those that are not the same in all."""
    flat = [dict(_values(config)) for config in configs]
    keys = dict.fromkeys(key for of_one in flat for key in of_one)
    rows = {key: [_told(of_one[key]) if key in of_one else NOT_SET for of_one in flat] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and (node or not prefix):
        for key, value in node.items():
            if key not in _ABOUT_THE_RUN:
                yield from _values(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and any(isinstance(value, Mapping) for value in node):
        for number, value in enumerate(node):
            yield from _values(value, f"{prefix}[{number}]")
    else:
        yield prefix, node


def _told(value: Any) -> str:
    return "null" if value is None else str(value)
