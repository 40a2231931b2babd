"""What a cache is not finished or begun with."""

import json

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune import cache
from distill_tune.data import StepPlan, TokenisedRows
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.disk import release_locks
from distill_tune.errors import UserError
from distill_tune.losses import TopTokens
from distill_tune.training.output_check import check_outputs
from distill_tune.training.teacher_cache import describe_teacher, find_cache, finish_cache, require_serving

ENCODING, SAMPLED = cache.TopEncoding(50, 4), cache.SampledEncoding(50)


@pytest.fixture(autouse=True)
def _unlocked():
    yield
    release_locks()


def rows_of(count: int) -> TokenisedRows:
    tokens = torch.arange(3 * count, dtype=torch.int32)
    return TokenisedRows(tokens, tokens, torch.arange(count + 1) * 3, packed=False, max_seq_len=64)


def test_a_cache_without_the_rows_of_another_machine_is_not_finished(tmp_path):
    rows = rows_of(6)
    manifest = cache.begin(tmp_path, cache.Manifest("top_k", cache.settings_of(ENCODING), 0, {}))
    plans = [StepPlan([rows.first(4)]), StepPlan([rows])]
    for start, stop in ((0, 4), (4, 6)):
        writer = cache.CacheWriter(tmp_path)
        records = ENCODING.encode(TopTokens.of(torch.zeros(2 * (stop - start), 50), 4), [2] * (stop - start))
        writer.add(rows.digests[start:stop], records)
        writer.close()
        if stop == 4:
            with pytest.raises(
                UserError, match="lacks 2 rows that other processes have written; name a folder that all"
            ):
                finish_cache(tmp_path, manifest, plans)
            assert not json.loads((tmp_path / cache.MANIFEST).read_text())["finished"]
    assert finish_cache(tmp_path, manifest, plans).startswith("done: 6 rows, 12 supervised tokens")
    component = OmegaConf.create({"_component_": "distill_tune.data.hf_tokenizer", "path": "its folder"})
    told = finish_cache(tmp_path, manifest, plans, [OtherTokenizer(None, component, None, None)])
    assert told.endswith("'+teacher_tokenizer={_component_: distill_tune.data.hf_tokenizer, path: its folder}'")


def test_a_cache_that_another_run_is_filling_is_refused_before_rows_are_read(tmp_path):
    folder, of_another = tmp_path / "cache", tmp_path / "also"  # by another path a lock is another's
    folder.mkdir()
    of_another.symlink_to(folder)
    config = OmegaConf.create({"teacher_cache": str(folder)})
    manifest = cache.begin(of_another, cache.Manifest("top_k", cache.settings_of(ENCODING), 0, {}))
    told = "cache: another run is writing there; wait for it, or name another"
    for key, begin in (
        ("output_dir", lambda: find_cache(str(folder))),
        ("teacher_cache", lambda: check_outputs(config)),
    ):
        with pytest.raises(UserError, match=f"{key}=.*{told}"):
            begin()
    with cache.CacheWriter(folder) as writer:
        writer.add([bytes(16)], ENCODING.encode(TopTokens.of(torch.zeros(1, 50), 4), [1]))
    with pytest.raises(UserError, match=told):
        check_outputs(config)
    cache.finish(folder, manifest, [])
    check_outputs(config)  # it may have all rows
    release_locks()
    assert find_cache(str(folder))[0] == folder


@pytest.mark.parametrize(
    ("encoding", "config", "told"),
    [
        (SAMPLED, {"kd_loss": {"_component_": "distill_tune.losses.ReverseKL"}}, "serves ForwardKL, not ReverseKL"),
        (
            ENCODING,
            {"kd_loss": {"_component_": "distill_tune.losses.TopK", "k": 5}},
            "of 4 tokens cannot serve TopK of 5",
        ),
        (SAMPLED, {"temperature": 2.0}, "the loss is at 2: make one at 2, or one of kind hidden"),
        (SAMPLED, {"temperature": {"_component_": "distill_tune.training.Linear"}}, "take kind hidden"),
        (SAMPLED, {"kd_token_weight": {"_component_": "distill_tune.losses.TargetProbability"}}, "take kind hidden"),
    ],
)
def test_a_kind_that_does_not_serve_the_loss_of_its_own_config_is_refused(encoding, config, told):
    with pytest.raises(UserError, match=f"cache.kind={encoding.kind}: .*{told}"):
        require_serving(encoding, OmegaConf.create(config))
    require_serving(encoding, OmegaConf.create({}))
    require_serving(cache.HiddenEncoding(50, 8), OmegaConf.create(config))


def test_a_served_teacher_is_the_same_at_another_port_and_asked_otherwise():
    served = {"_component_": "distill_tune.teachers.Served", "kind": "hidden", "url": "http://one:8000"}

    def described(**changes):
        cfg = OmegaConf.create({"dtype": "fp32", "teacher_model": served | changes})
        return describe_teacher(cfg, (), "content")

    transport = {"url": ["http://other:1"], "retries": 1, "timeout": 60, "concurrency": 9, "token": "of-mine"}
    assert described(**transport) == described()
    assert described(kind="top_k") != described()
