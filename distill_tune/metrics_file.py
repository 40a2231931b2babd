"""Lines of metrics.jsonl and of files like it, as far as they are whole."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_metrics(path: Path | None) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; none without one."""
    if path is not None and path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):  # cut short
                if isinstance(values := json.loads(line), dict):
                    yield values
