"""All of it, and what is said meanwhile."""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from first_hour.items import MACHINE, all_items
from first_hour.outcome import FAILED, OK, Settings
from first_hour.report import counted, words, write
from first_hour.workers import work_through


def first_hour(device: str, small: bool, folder: Path, only: Sequence[str] = (), at_once: int = 1) -> None:
    """
    Args:
        device: ``cuda`` or ``cpu``.
        small: tiny sizes.
        folder: for the two files.
        only: parts of names; items whose ``section: name`` has none of them are left out.
        at_once: workers that check and run; what is measured is always alone.
    """
    items = [
        item
        for item in all_items(small)
        if item.section == MACHINE or not only or any(part in f"{item.section}: {item.name}" for part in only)
    ]
    started = time.monotonic()
    results: list[dict[str, Any]] = []

    def told(result: dict[str, Any]) -> None:
        results.append(result)
        if result["section"] != MACHINE:
            print(f"{result['section']}: {result['name']}: {words(result)}", flush=True)
        elif result["state"] == OK:
            for name, value in result["figures"].items():
                print(f"{name}: {value}", flush=True)
        elif result["state"] == FAILED and device == "cuda":
            raise SystemExit(f"{words(result)}\nWithout a GPU, --device cpu --small shows whether all of it runs.")

    with tempfile.TemporaryDirectory() as name, contextlib.suppress(KeyboardInterrupt):  # what there is, is written
        results = work_through(items, Settings(device, small, Path(name)), told, at_once)
    paths = write(results, device, small, (time.monotonic() - started) / 60, folder)
    print(f"\n{counted(results)}\nresults: {paths[0]}\nto send us: {paths[1]}")
