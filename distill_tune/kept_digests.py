"""SHA-256 of large files, worked out once for all starts and all processes of a machine."""

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from distill_tune.cache_folder import cache_folder, delete_unused
from distill_tune.disk import digest, write_text

_SMALL = 2**20  # bytes: hashed as fast as looked up
_JUST_NOW = 2.0  # seconds, in which a file may be changed once more without another time


def kept_digest(path: Path) -> str:
    """:func:`~distill_tune.disk.digest`, as it was kept if the file's size, both times of change and inode are as then.

    The kernel sets one of the times at each change of the content, whatever a program says of the other.
    """
    before = _state_of(path)
    place = _place_of(path) if before[0] >= _SMALL else None
    if place is None:
        return digest(path)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # nothing kept, or not as it was written
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept["state"] == before:
            return str(kept["sha256"])
    found = digest(path)
    if _state_of(path) == before and time.time() - max(before[1:3]) / 1e9 > _JUST_NOW:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, json.dumps({"path": str(path), "state": before, "sha256": found}))
    return found


def delete_old_digests() -> None:
    root = cache_folder()
    if root is not None:
        delete_unused(root / "digests")


def _state_of(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _place_of(path: Path) -> Path | None:
    root = cache_folder()
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return None if root is None else root / "digests" / f"{name}.json"
