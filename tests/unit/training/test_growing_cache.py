"""What is found of a cache while it is added to."""

import pytest
import torch

from distill_tune import cache
from distill_tune.cache.shard import Shard
from distill_tune.disk import release_locks
from distill_tune.losses import TopTokens
from distill_tune.training.growing_cache import GrowingCache

ENCODING = cache.TopEncoding(50, 4)
DIGESTS = [bytes([number]) * 16 for number in range(6)]
RECORDS = ENCODING.encode(TopTokens.of(torch.randn(12, 50, generator=torch.Generator().manual_seed(0)), 4), [2] * 6)


@pytest.fixture
def folder(tmp_path):
    cache.begin(tmp_path, cache.Manifest("top_k", cache.settings_of(ENCODING), 0, {}))
    yield tmp_path
    release_locks()


def found(growing: GrowingCache) -> dict[int, bytes]:
    return {DIGESTS.index(digest): bytes(record) for digest, record in growing.records(DIGESTS).items()}


def test_ones_own_are_found_at_once_and_those_of_others_from_a_flush_on(folder):
    one, other = (GrowingCache(folder, "teacher_cache", is_added_to=True) for _ in range(2))
    reader = GrowingCache(folder, "teacher_cache", is_added_to=False)
    one.add(DIGESTS[:2], RECORDS[:2])
    other.add(DIGESTS[2:4], RECORDS[2:4])
    assert not cache.shard_files(folder)
    assert found(one) == dict(enumerate(RECORDS[:2]))
    other.close()  # as before a checkpoint
    assert found(other) == {2: RECORDS[2], 3: RECORDS[3]}
    assert found(one).keys() == {0, 1}
    one.flush()
    assert found(one) == dict(enumerate(RECORDS[:4]))
    assert not found(reader)
    reader.flush()
    assert found(reader) == found(one)


def test_what_is_there_is_read_once_to_go_on(folder, monkeypatch):
    growing = GrowingCache(folder, "teacher_cache", is_added_to=True)
    growing.add(DIGESTS[:2], RECORDS[:2])
    growing.close()
    opened = []
    monkeypatch.setattr(Shard, "open", lambda path, read=Shard.open: opened.append(path) or read(path))
    goes_on = GrowingCache(folder, "teacher_cache", is_added_to=True)
    assert len(opened) == len(cache.shard_files(folder)) == 1
    goes_on.add(DIGESTS[2:4], RECORDS[2:4])
    assert found(goes_on) == dict(enumerate(RECORDS[:4]))


def test_a_full_shard_is_found_after_it_was_closed(folder, monkeypatch):
    growing = GrowingCache(folder, "teacher_cache", is_added_to=True)
    growing._writer._shard_bytes = 1
    for digest, record in zip(DIGESTS, RECORDS, strict=True):
        growing.add([digest], [record])
    assert len(cache.shard_files(folder)) == len(DIGESTS)
    assert found(growing) == dict(enumerate(RECORDS))
    growing.add([], [])
    assert found(growing) == dict(enumerate(RECORDS))
