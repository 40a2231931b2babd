"""Works through items in processes of their own: whatever one of them does, the next is reached."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from first_hour.outcome import FAILED, ITEM_LOG, NEEDS_CUDA, Item, Settings, last_line, shortened

BENCHMARKS = Path(__file__).parents[1]


def work_through(
    items: Sequence[Item], settings: Settings, told: Callable[[dict[str, Any]], None], at_once: int = 1
) -> list[dict[str, Any]]:
    """The outcome of each item, in their order; ``told`` hears of each as it is there.

    A worker takes one item after another, and another worker goes on where one has failed, was killed or has hung.
    ``at_once`` workers share the items whose figures do not suffer by it; those that want to be alone come after them.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    lock, stopped = threading.Lock(), threading.Event()

    def add(result: dict[str, Any]) -> None:
        with lock:
            found[result["section"], result["name"]] = result
            told(result)

    for item in items:
        if item.needs_cuda and settings.device != "cuda":
            add({"section": item.section, "name": item.name, "state": NEEDS_CUDA})
    remaining = [item for item in items if (item.section, item.name) not in found]
    together = [item for item in remaining if not item.alone]
    with ThreadPoolExecutor(at_once) as pool:
        shares = [
            pool.submit(_work_through, together[n::at_once], settings, f"worker_{n}", add, stopped)
            for n in range(at_once)
        ]
        try:
            for share in shares:
                share.result()
        except BaseException:
            stopped.set()
            raise
    _work_through([item for item in remaining if item.alone], settings, "alone", add, stopped)
    return [found[item.section, item.name] for item in items]


def _work_through(
    items: list[Item], settings: Settings, name: str, add: Callable[[dict[str, Any]], None], stopped: threading.Event
) -> None:
    """One worker after another in a folder of their own, until no item is left."""
    settings = dataclasses.replace(settings, folder=settings.folder / name)
    settings.folder.mkdir()
    while items and not stopped.is_set():
        results: list[dict[str, Any]] = []

        def heard(result: dict[str, Any], results: list[dict[str, Any]] = results) -> None:
            results.append(result)
            add(result)

        fault = _worker(items, settings, heard)
        items = items[len(results) :]
        if fault and items:
            add({"section": items[0].section, "name": items[0].name, "state": FAILED, **fault})
            items = items[1:]


def _worker(items: Sequence[Item], settings: Settings, add: Callable[[dict[str, Any]], None]) -> dict[str, str] | None:
    """One process; ``add`` gets what it finds. Returns how it ended, where that was not its own end."""
    names = ("request.json", "results.jsonl", "worker.log", ITEM_LOG)
    request, results, output, log_of_item = (settings.folder / name for name in names)
    fields = dataclasses.asdict(settings) | {"folder": str(settings.folder)}
    request.write_text(json.dumps({"settings": fields, "items": [dataclasses.asdict(item) for item in items]}))
    results.write_text("")
    log_of_item.write_text("")
    command = [sys.executable, "-m", "first_hour.worker", str(request), str(results)]
    seen = 0
    with output.open("w") as log:
        process = subprocess.Popen(
            command, cwd=settings.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        ended = False
        while not ended:
            ended = process.poll() is not None  # then what it has written is all there is
            lines = results.read_text().split("\n")[:-1]
            for line in lines[seen:]:
                add(json.loads(line))
            seen = len(lines)
            time.sleep(0 if ended else 0.1)
    if process.returncode == 0 and seen:
        return None
    told = "".join(path.read_text(errors="replace") for path in (output, log_of_item)).strip()
    if "Timeout (" in told:  # faulthandler's word
        reason = f"took longer than {items[seen].seconds} seconds"
    else:
        reason = f"its process ended with status {process.returncode}: {last_line(told)}"
    return {"reason": reason, "error": shortened(told)}


def environment() -> dict[str, str]:
    """Of a process that imports from this folder and this tree, offline; freed memory is given back, and so counted."""
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent), os.getenv("PYTHONPATH", "")]
    # Not what a pytest around this one has set for itself.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return inherited | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "HF_HUB_OFFLINE": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
