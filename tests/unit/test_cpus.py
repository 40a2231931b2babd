"""CPUs are counted by what the process may use."""

import os

import pytest

from distill_tune import cpus


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(cpus, "_QUOTAS", ())
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


def test_those_that_a_scheduler_leaves_to_the_process_count():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})  # as taskset and srun --cpus-per-task=1 do
    try:
        assert cpus.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("files", "usable"),
    [
        (["max 100000"], 64),
        (["350000 100000"], 4),
        (["20000 100000"], 1),
        (["200000", "100000"], 2),
        (["-1", "100000"], 64),
        ([], 64),
        (["9000000 100000"], 64),
    ],
)
def test_a_containers_share_of_time_counts(machine, tmp_path, monkeypatch, files, usable):
    paths = tuple(tmp_path / f"quota_{number}" for number in range(len(files) or 1))
    for path, text in zip(paths, files, strict=False):
        path.write_text(f"{text}\n")
    monkeypatch.setattr(cpus, "_QUOTAS", (paths,))
    assert cpus.usable_cpus() == usable
