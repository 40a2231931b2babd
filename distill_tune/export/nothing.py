"""What a path is that has nothing to export or to upload."""

from pathlib import Path

from distill_tune.config.files import no_model_at


def nothing_at(path: Path) -> str:
    """As :func:`no_model_at`, with which of its two last cases it is."""
    kind = "has no config.json" if path.is_dir() else "is a file" if path.exists() else "no such folder"
    return no_model_at(path).replace("no such folder, or it has no config.json", kind)
