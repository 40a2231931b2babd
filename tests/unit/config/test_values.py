"""Faults of the section `cache`, told before anything heavy is imported."""

import pytest
from omegaconf import OmegaConf

from distill_tune.config.components import check_components
from distill_tune.config.files import find_config
from distill_tune.config.missing_files import missing_files
from distill_tune.config.values import check_values


def faults(**cache: object) -> list[str]:
    return [fault for fault in check_values(OmegaConf.create({"cache": cache})) if fault.startswith("cache")]


@pytest.mark.parametrize(
    "cache",
    [
        {"kind": "sampled", "draws": 12, "temperature": 0.5, "proposal_temperature": 2},
        {"kind": "top_k", "k": 50, "temperature": None},
        {"kind": "hidden"},
    ],
)
def test_what_a_kind_heeds_is_taken(cache):
    assert faults(**cache) == []


@pytest.mark.parametrize(
    ("cache", "told"),
    [
        ({}, "cache.kind=None: must be one of sampled, top_k, hidden, likelihood"),
        ({"kind": "dense"}, "cache.kind=dense: must be one of sampled, top_k, hidden, likelihood"),
        ({"kind": None}, "cache.kind=None: must be one of sampled, top_k, hidden, likelihood"),
        ({"kind": "sampled", "drws": 5}, "cache.drws: no such key, did you mean draws?"),
        ({"kind": "sampled", "draws": 0}, "cache.draws=0: must be a whole number of at least 1 or null"),
        (
            {"kind": "top_k", "draws": 5},
            "cache.draws=5: cache.kind=top_k does not heed it; leave it out (~cache.draws)",
        ),
        (
            {"kind": "hidden", "temperature": 2},
            "cache.temperature=2: cache.kind=hidden does not heed it; leave it out (~cache.temperature)",
        ),
        (
            {"kind": "likelihood", "k": 5},
            "cache.k=5: cache.kind=likelihood does not heed it; leave it out (~cache.k)",
        ),
        ({"kind": "top_k", "k": 1.5}, "cache.k=1.5: must be a whole number of at least 1 or null"),
        (
            {"kind": "sampled", "proposal_temperature": 0},
            "cache.proposal_temperature=0: must be a number above 0 or null",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_it_may_be(cache, told):
    assert faults(**cache) == [told]


def test_the_shipped_config_of_a_cache_takes_each_kind_as_its_head_says():
    shipped = OmegaConf.to_container(OmegaConf.load(find_config("cached_teacher")))
    for kind in ("sampled", "top_k", "hidden", "likelihood"):
        assert faults(**shipped["cache"] | {"kind": kind}) == []


def test_a_cache_is_told_from_what_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def told(component: str, path: str) -> str:
        config = OmegaConf.create({"teacher_model": {"_component_": component, "path": path}})
        found = [*check_values(config), *missing_files(config), *check_components(config)]
        return next(fault for fault in found if fault.startswith(("teacher_model.path", "teacher_model=")))

    cached, from_hf = "distill_tune.teachers.Cached", "distill_tune.models.from_hf"
    assert "output_dir=nowhere" in told(cached, "nowhere")
    (tmp_path / "my.json").touch()
    (tmp_path / "stored").mkdir()
    for path in ("my.json", "stored"):
        assert told(cached, path) == (
            f"teacher_model.path={path}: is no cache of a teacher, which has a manifest.json; name another folder"
        )
    (tmp_path / "stored" / "manifest.json").touch()
    so = "write 'teacher_model={_component_: distill_tune.teachers.Cached, path: stored}'"
    is_none = f"teacher_model.path=stored: is a cache of a teacher, and no model's folder; {so}"
    assert told(from_hf, "stored") == told("Cached", "stored") == is_none
    assert told("stored", "nowhere").startswith("teacher_model.path=nowhere: no such folder")
    config = OmegaConf.create({"teacher_model": {"_component_": "stored"}})
    assert check_components(config) == [f"teacher_model=stored: is a cache of a teacher; {so}"]


@pytest.mark.parametrize("value", ["/nowhere", {"path": "/nowhere"}])
def test_what_names_no_tokenizer_is_shown_how_one_is_named(value):
    (told,) = check_values(OmegaConf.create({"teacher_model": {"_component_": "a.b"}, "teacher_tokenizer": value}))
    assert "must be a component" in told and "'{_component_: distill_tune.data.hf_tokenizer, path: FOLDER}'" in told


def test_a_method_that_tells_no_token_from_another_needs_cross_entropy():
    method = {"_component_": "distill_tune.losses.UniversalLogit"}
    config = {"teacher_model": {"_component_": "a.b"}, "kd_loss": method}
    (told,) = check_values(OmegaConf.create({**config, "kd_ratio": 1}))
    assert told.startswith("kd_ratio=1: UniversalLogit") and told.endswith("set it below 1, as kd_ratio=0.9")
    assert not [*check_values(OmegaConf.create({**config, "kd_ratio": 0.9}))]
