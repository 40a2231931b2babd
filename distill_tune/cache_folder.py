"""Where it is kept from run to run what can be made anew."""

import contextlib
import os
import time
from pathlib import Path

KEPT_UNUSED = 30 * 86_400  # seconds


def cache_folder() -> Path | None:
    """``DISTILL_TUNE_CACHE``, else distill_tune/ in ``XDG_CACHE_HOME``, else in ~/.cache; None without a home folder,
    as of a user whom the machine does not know."""
    others = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(os.environ.get("DISTILL_TUNE_CACHE") or os.path.join(others, "distill_tune")))
    return None if str(folder).startswith("~") else folder


def delete_unused(kept: Path) -> None:
    """Delete the files of a folder that nobody has written or touched for 30 days."""
    with contextlib.suppress(OSError):  # no such folder, or another run deletes them, too
        for path in kept.iterdir():
            if time.time() - path.stat().st_mtime > KEPT_UNUSED:
                path.unlink()
