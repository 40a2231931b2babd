"""Where it is kept from run to run what can be made anew."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """``DISTILL_TUNE_CACHE``, else distill_tune/ in ``XDG_CACHE_HOME``, else in ~/.cache; None without a home folder,
    as of a user whom the machine does not know."""
    others = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(os.path.expanduser(os.environ.get("DISTILL_TUNE_CACHE") or os.path.join(others, "distill_tune")))
    return None if str(folder).startswith("~") else folder
