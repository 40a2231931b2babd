"""The tables of benchmarks/cached.py."""

import importlib
from pathlib import Path

import pytest

from distill_tune.config.check import checked_config
from distill_tune.config.files import find_recipe

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cached_tables")


def figures(cross_entropy, kl=1.0):
    return {"cross_entropy": cross_entropy, "kl": kl, "agreement": 0.5}


def line_of(text, beginning):
    return next(line for line in text.splitlines() if line.startswith(beginning))


def test_the_config_takes_the_settings_of_each_way(tables, tmp_path):
    ways = importlib.import_module("cached_ways")
    for way in [one for one in ways.WAYS if one.cache]:
        checked_config(find_recipe("teacher_cache"), "cached_teacher", way.cache)
    for way in [ways.FINE_TUNING, ways.LIVE]:
        checked_config(find_recipe("kd_single_device"), "cached_teacher", way.settings(tmp_path, 0.9))


def test_differences_are_those_of_runs_with_the_same_seed(tables):
    """Whose own spread is far larger; a seed that one of both lacks is left out."""
    found = {("caches", "12 draws"): {"bytes": 25.0, "distinct": 7.2}}
    for seed, live in enumerate([1.0, 2.0, 3.0]):
        found["worth", f"kd_ratio 1, seed {seed}: live teacher"] = figures(live)
    for seed, own in enumerate([1.004, 2.006]):
        found["worth", f"kd_ratio 1, seed {seed}: 12 draws"] = figures(own, kl=1.1)
    found["worth", "kd_ratio 1, seed 0: top 12 and the rest"] = figures(1.02)
    text = tables.all_tables(found, [1.0], seeds=3, rounds=1)
    assert "+0.0050 ± 0.0014 | +0.1000 ± 0.0000 |" in line_of(text, "| 12 draws | 2 |")
    assert line_of(text, "- 12 draws (7.2").endswith(
        "+0.0050 ± 0.0014 nats from the live teacher's cross-entropy, within 0.01."
    )
    assert line_of(text, "- top 12").endswith("+0.0200 nats from the live teacher's cross-entropy, not within 0.01.")


def test_a_step_is_set_beside_the_one_of_the_same_rows(tables):
    found = {
        ("seconds", "round 0: fine-tuning"): {"step_seconds": [9.0, 1.0, 2.0, 4.0]},
        ("seconds", "round 0: live teacher"): {"step_seconds": [9.0, 2.0, 4.0, 8.0]},
        ("seconds", "round 0: 12 draws"): {"step_seconds": [1.0, 1.5, 3.0, 6.0]},
        ("seconds", "round -1: 12 draws"): {"step_seconds": [100.0] * 4},
    }
    text = tables.all_tables(found, [1.0], seeds=1, rounds=1)
    assert line_of(text, "| 12 draws").endswith("| 3.0000 | 1.500 | 0.750 |")
