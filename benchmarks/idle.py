"""Whether a measurement had the machine to itself, told from the CPU time that others took meanwhile."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Value = TypeVar("Value")

LIMIT = 0.05  # of the time of all cores; one busy process on two cores is 0.5, and makes a step many times as long
_TRIES, _PAUSE = 3, 5  # times, seconds
_BUSY = (1, 2, 3, 6, 7, 8)  # of /proc/stat's first line: user, nice, system, irq, softirq, steal


def busy_seconds() -> float:
    """CPU time that the machine's cores have spent on anything, since it started; of a virtual one, also elsewhere."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(int(fields[number]) for number in _BUSY) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of its children that have ended, with theirs."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def share_of_others(run: Callable[[], Value]) -> tuple[Value, float]:
    """The function's value, and which share of all cores' time others took while it ran."""
    others, started = busy_seconds() - own_seconds(), time.perf_counter()
    value = run()
    others, seconds = busy_seconds() - own_seconds() - others, time.perf_counter() - started
    return value, max(0.0, others / seconds / (os.cpu_count() or 1))


def run_alone(what: str, run: Callable[[], Value]) -> Value:
    """The function's value of a call during which the machine was idle but for it; ends the program if none is."""
    for number in range(1, _TRIES + 1):
        value, share = share_of_others(run)
        if share <= LIMIT:
            return value
        told = f"{what}: others took {share:.0%} of the machine's CPU time"
        if number < _TRIES:
            print(f"{told}; once more", file=sys.stderr, flush=True)
            time.sleep(_PAUSE)
    sys.exit(f"{told}; what it measured says nothing: stop them, and start again")
