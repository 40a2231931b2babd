"""metrics.jsonl of a run that goes on, line by line as they come."""

import json
from pathlib import Path
from typing import Any


class MetricsFollower:
    """Reads each whole line of a file once; from the start again where the file has become another, as it does when a
    run is resumed.
    """

    def __init__(self, file: Path) -> None:
        self._file, self._identity, self._offset = file, (0, 0), 0

    def new_lines(self) -> list[dict[str, Any]]:
        """Since the last call; none while there is no file."""
        try:
            with self._file.open("rb") as stream:
                status = self._file.stat()
                identity = (status.st_dev, status.st_ino)
                if identity != self._identity or status.st_size < self._offset:
                    self._identity, self._offset = identity, 0
                stream.seek(self._offset)
                whole = stream.read().rpartition(b"\n")[0]
        except OSError:
            return []
        self._offset += len(whole) + 1 if whole else 0
        found = []
        for line in whole.splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:  # of a disk that was full
                continue
        return [line for line in found if isinstance(line, dict)]
