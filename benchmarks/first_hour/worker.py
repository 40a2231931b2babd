"""A process that works through items and ends at the first failure, which may have spoilt its CUDA context.

    python -m first_hour.worker REQUEST RESULTS

REQUEST: JSON of the settings and the items; RESULTS: a line of JSON for each item that was worked on, appended.
"""

import contextlib
import faulthandler
import importlib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from first_hour.outcome import (
    FAILED,
    ITEM_LOG,
    NOT_MEASURED,
    OFF,
    OK,
    Deviation,
    Item,
    NotMeasured,
    Settings,
    last_line,
    shortened,
)


def main(request_path: str, results_path: str) -> None:
    request = json.loads(Path(request_path).read_text())
    settings = Settings(**request["settings"] | {"folder": Path(request["settings"]["folder"])})
    for item in (Item(**fields) for fields in request["items"]):
        result = outcome_of(item, settings)
        with open(results_path, "a") as results:
            results.write(json.dumps(result) + "\n")
        if result["state"] == FAILED or (item.alone and settings.device == "cuda"):
            break
    sys.stdout.flush()
    os._exit(0)  # not through the ends of libraries, which a broken CUDA context can hold up


def outcome_of(item: Item, settings: Settings) -> dict[str, Any]:
    """What the report keeps of an item."""
    started = time.perf_counter()
    faulthandler.dump_traceback_later(item.seconds, exit=True)
    log = settings.folder / ITEM_LOG
    found: dict[str, Any]
    try:
        with _output_in(log):
            module, _, function = item.function.partition(":")
            value = getattr(importlib.import_module(module), function)(settings, **item.arguments)
        found = _of_value(value)
    except NotMeasured as reason:
        found = {"state": NOT_MEASURED, "reason": str(reason)}
    except BaseException as error:  # a recipe that gives up leaves by SystemExit, its message being in its output
        told = log.read_text(errors="replace").strip() if isinstance(error, SystemExit) else ""
        told = told or "".join(traceback.format_exception(error)).strip()
        found = {"state": FAILED, "reason": last_line(told), "error": shortened(told)}
    finally:
        faulthandler.cancel_dump_traceback_later()
    return found | {"section": item.section, "name": item.name, "seconds": round(time.perf_counter() - started, 2)}


def _of_value(value: Deviation | dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value, Deviation):
        return {"state": OK, "figures": value}
    is_near = value.off <= value.bound  # not where it is NaN
    off = value.off if math.isfinite(value.off) else str(value.off)  # JSON has no NaN
    return value._asdict() | {"off": off, "state": OK if is_near else OFF}


@contextlib.contextmanager
def _output_in(path: Path) -> Iterator[None]:
    """What is written to stdout and stderr, by whatever code, goes to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(log)


if __name__ == "__main__":
    main(*sys.argv[1:])
