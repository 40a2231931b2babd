"""The day of a run: what a chat template writes, also where the run goes on another day."""

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from distill_tune import cache
from distill_tune.config.keys import KEYS
from distill_tune.data import dates
from distill_tune.disk import release_locks
from distill_tune.losses import TopTokens
from distill_tune.training import RunFolder, TrainingState, day, use_day


@pytest.fixture(autouse=True)
def _no_day_yet(monkeypatch):
    monkeypatch.setattr(dates, "_of_run", None)


def today_is(monkeypatch, found: str) -> None:
    class Calendar:
        @staticmethod
        def today():
            return dates.datetime.fromisoformat(found).date()

    monkeypatch.setattr(day, "date", Calendar)


def state_after_a_step(tmp_path) -> TrainingState:
    TrainingState.after(1, 0, {}, OmegaConf.create(), 10, {}).write(tmp_path)
    return TrainingState.read(tmp_path)


def test_a_run_that_is_resumed_on_another_day_writes_its_first(tmp_path, monkeypatch):
    today_is(monkeypatch, "2026-03-01")
    use_day(None)
    assert dates.today().strftime("%d %b %Y") == "01 Mar 2026"
    state = state_after_a_step(tmp_path)
    today_is(monkeypatch, "2026-03-02")
    use_day(None, state)
    assert dates.day_of_run() == "2026-03-01"
    use_day("2026-02-28", state)
    assert dates.day_of_run() == "2026-02-28"


def test_a_checkpoint_without_a_day_goes_on_today(tmp_path, monkeypatch):
    state = state_after_a_step(tmp_path)
    assert state.date is None
    today_is(monkeypatch, "2026-03-02")
    use_day(None, state)
    assert dates.day_of_run() == "2026-03-02"


def test_a_cache_has_rows_of_its_own_day_alone_unless_the_run_has_one(tmp_path, monkeypatch):
    today_is(monkeypatch, "2026-03-02")
    folder = tmp_path / "cache"
    use_day(None, None, str(folder))
    assert dates.day_of_run() == "2026-03-02"  # nothing is there
    encoding = cache.TopEncoding(50, 4)
    manifest = cache.Manifest("top_k", cache.settings_of(encoding), 0, {}, date="2024-02-29")
    cache.begin(folder, manifest)
    release_locks()
    use_day(None, None, str(folder))
    assert dates.day_of_run() == "2026-03-02"  # no row of it
    with cache.CacheWriter(folder) as writer:
        writer.add([bytes(16)], encoding.encode(TopTokens.of(torch.zeros(2, 50), 4), [2]))
    use_day(None, None, str(folder))
    assert dates.day_of_run() == "2024-02-29"
    use_day("2026-02-28", None, str(folder))
    assert dates.day_of_run() == "2026-02-28"
    use_day(None, state_after_a_step(tmp_path), str(folder))
    assert dates.day_of_run() == "2026-02-28"  # the run's own


def test_ranks_on_either_side_of_midnight_write_rank_0s(monkeypatch):
    today_is(monkeypatch, "2026-03-02")
    monkeypatch.setattr(day, "from_main_process", lambda mine: "2026-03-01")
    use_day(None)
    assert dates.day_of_run() == "2026-03-01"


def test_config_yaml_has_the_day_and_gives_it_to_a_run_that_is_made_from_it(tmp_path, monkeypatch):
    today_is(monkeypatch, "2026-03-01")
    use_day(None)
    RunFolder(tmp_path / "out").write_config(OmegaConf.create({"epochs": 1}), 7)
    written = (tmp_path / "out" / "config.yaml").read_text()
    assert yaml.safe_load(written) == {"epochs": 1, "seed": 7, "date": "2026-03-01"}
    today_is(monkeypatch, "2026-03-09")
    use_day(OmegaConf.load(tmp_path / "out" / "config.yaml").date)
    assert dates.day_of_run() == "2026-03-01"


@pytest.mark.parametrize("value", ["1 March", 20260301, "2026-13-01"])
def test_what_is_no_day_is_a_fault(value):
    fault_of = KEYS["date"].values.fault
    assert "must be a day" in fault_of(value)
    assert fault_of("2026-03-01") is None is fault_of(None)
