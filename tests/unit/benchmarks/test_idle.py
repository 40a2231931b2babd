"""A benchmark knows whether it had the machine to itself."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SPIN = "import time\nuntil = time.process_time() + {seconds}\nwhile time.process_time() < until: pass"


@pytest.fixture
def idle(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("idle")
    monkeypatch.setattr(module, "_PAUSE", 0)
    return module


def test_a_busy_neighbour_is_noticed(idle):
    neighbour = subprocess.Popen([sys.executable, "-c", SPIN.format(seconds=1000)])
    try:
        _, share = idle.share_of_others(lambda: time.sleep(1))
    finally:
        neighbour.kill()
        neighbour.wait()
    assert share > idle.LIMIT


def test_ones_own_processes_are_no_neighbours(idle, monkeypatch):
    # A machine on which nothing else runs, as a table of its times.
    monkeypatch.setattr(idle, "busy_seconds", idle.own_seconds)
    before = idle.own_seconds()
    command = [sys.executable, "-c", SPIN.format(seconds=0.2)]
    _, share = idle.share_of_others(lambda: subprocess.run(command, check=True))
    assert share < 1e-3
    assert idle.own_seconds() - before > 0.2


@pytest.mark.parametrize("crowded", [0, 1, 2, 3])
def test_a_run_beside_others_is_repeated_and_refused_the_third_time(idle, monkeypatch, capsys, crowded):
    shares = [0.5] * crowded + [0.01]
    monkeypatch.setattr(idle, "share_of_others", lambda run: (run(), shares.pop(0)))
    runs = []
    if crowded < 3:
        assert idle.run_alone("step_of.py ours", lambda: runs.append(1) or len(runs)) == crowded + 1
    else:
        with pytest.raises(SystemExit, match=r"step_of\.py ours: others took 50% of the machine's CPU time; what it "):
            idle.run_alone("step_of.py ours", lambda: runs.append(1))
    assert len(runs) == min(crowded + 1, 3)
    assert capsys.readouterr().err.count("once more") == min(crowded, 2)
