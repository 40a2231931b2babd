"""Threads on a machine that is shared: how they wait, and how many a process has."""

import os
from pathlib import Path

import pytest

from distill_tune import threads
from distill_tune.cli import run
from distill_tune.cli.caller import left_as_it_was
from distill_tune.cli.main import main


@pytest.mark.parametrize(
    "said, found",
    [
        ({}, {"GOMP_SPINCOUNT": "10000"}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_threads_sleep_soon_unless_the_user_says_how_they_wait(said, found, monkeypatch, capsys):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    main(["ls", "--path", "tiny"])
    assert {name: os.environ[name] for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if name in os.environ} == found


@pytest.mark.parametrize(
    "usable, visible, processes, count",
    [(8, 8, 2, "4"), (2, 2, 2, "1"), (2, 2, 8, "1"), (8, 8, 1, None), (2, 64, 1, "2"), (5, 64, 2, "2")],
)
def test_cpus_that_may_be_used_are_shared_among_processes(usable, visible, processes, count, monkeypatch):
    monkeypatch.setattr(threads, "usable_cpus", lambda: usable)
    monkeypatch.setattr(threads, "visible_cpus", lambda: visible)
    environment: dict[str, str] = {}
    threads.set_threads(processes, environment)
    assert environment.get("OMP_NUM_THREADS") == count
    environment = {"OMP_NUM_THREADS": "3"}
    threads.set_threads(processes, environment)
    assert environment == {"OMP_NUM_THREADS": "3"}


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_ranks_share_the_cpus_that_this_process_may_use(monkeypatch):
    started = []
    monkeypatch.setattr("torch.distributed.run.run", lambda options: started.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        with left_as_it_was():
            run._launch(run.torchrun_options(["--nproc_per_node", "2", "recipe.py"]), Path("recipe.py"), "tiny", [])
    finally:
        os.sched_setaffinity(0, before)
    assert started == ["1"]
    assert "OMP_NUM_THREADS" not in os.environ
