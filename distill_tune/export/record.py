"""What an exported folder says of itself: export.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_tune.errors import UserError

RECORD = "export.json"
FAILED = ".failed"  # the end of the name of a folder that has not passed


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def read_record(folder: Path) -> dict[str, Any] | None:
    """None where there is none.

    Raises:
        UserError: it is broken.
    """
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / RECORD}: cannot be read: {error}; export once more") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / RECORD}: is no mapping; export once more")
    return content
