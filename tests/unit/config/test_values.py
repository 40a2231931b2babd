"""Faults of the section `cache`, told before anything heavy is imported."""

import pytest
from omegaconf import OmegaConf

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
        ({}, "cache.kind: missing; it must be one of sampled, top_k, hidden"),
        ({"kind": "dense"}, "cache.kind=dense: must be one of sampled, top_k, hidden"),
        ({"kind": None}, "cache.kind=None: must be one of sampled, top_k, hidden"),
        ({"kind": "sampled", "drws": 5}, "cache.drws: no such key, did you mean draws?"),
        ({"kind": "sampled", "draws": 0}, "cache.draws=0: must be a whole number of at least 1 or null"),
        ({"kind": "top_k", "draws": 5}, "cache.draws=5: cache.kind=top_k does not heed it; leave it out"),
        ({"kind": "hidden", "temperature": 2}, "cache.temperature=2: cache.kind=hidden does not heed it; leave it out"),
        ({"kind": "top_k", "k": 1.5}, "cache.k=1.5: must be a whole number of at least 1 or null"),
        (
            {"kind": "sampled", "proposal_temperature": 0},
            "cache.proposal_temperature=0: must be a number above 0 or null",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_it_may_be(cache, told):
    assert faults(**cache) == [told]
