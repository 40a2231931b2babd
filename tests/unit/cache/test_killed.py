"""A process that writes a cache is killed at random moments: what is found then is whole, and in the end all of it."""

import dataclasses
import os
import random
import signal
import time

import torch

from distill_tune.cache import CacheReader, CacheWriter, Manifest, TopEncoding, begin, finish, shard_files
from distill_tune.cache.shard import Shard
from distill_tune.losses import TopTokens

KILLS = int(os.environ.get("DISTILL_TUNE_TEST_KILLS", 40))
BATCHES, ROWS = 60, 4
ENCODING = TopEncoding(500, 8)
MADE = Manifest("top_k", dataclasses.asdict(ENCODING), seed=0, teacher={"content": "a"})


def batch(number: int) -> tuple[list[bytes], list[bytes]]:
    """Digests and records of some rows, as a teacher would give them again and again."""
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn(ROWS * 6, 500, generator=generator)
    digests = [bytes([number, row]) * 8 for row in range(ROWS)]
    return digests, ENCODING.encode(TopTokens.of(logits, 8), [6] * ROWS)


def write(folder, batches) -> None:
    """As recipes/teacher_cache.py does, to its end."""
    manifest = begin(folder, MADE)
    writer = CacheWriter(folder, shard_bytes=2000)
    for digests, rows in batches:
        if writer.lacks(digests):
            writer.add(digests, rows)
    writer.close()
    finish(folder, manifest, ["rows"])


def started(folder, batches) -> int:
    if child := os.fork():
        return child
    status = 1
    try:
        write(folder, batches)
        status = 0
    finally:
        os._exit(status)


def test_killed_at_random_while_it_writes_every_byte_is_as_if_it_had_not_been(tmp_path):
    batches = [batch(number) for number in range(BATCHES)]
    whole, folder = tmp_path / "whole", tmp_path / "cache"
    begun = time.monotonic()
    assert os.waitpid(started(whole, batches), 0)[1] == 0
    seconds = time.monotonic() - begun
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    draws, kills, seen = random.Random(3), 0, set()
    while True:
        child = started(folder, batches)
        time.sleep(seconds * draws.uniform(0, 0.35))
        if kills < KILLS:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == signal.SIGKILL:
            kills += 1
        else:
            assert status == 0
            if kills >= KILLS:
                break
        found = shard_files(folder) if folder.exists() else []
        seen.add(len(found))
        digests = [bytes(digest) for path in found for digest in Shard.open(path).digests]  # each is whole
        assert len(digests) == len(set(digests))
        assert {path.name for path in found} <= wanted.keys()
        if status == 0:
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
            for path in folder.iterdir():
                path.unlink()
    assert len(seen) > 3  # it was killed at many places
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    rows = [row for _, of_batch in batches for row in of_batch]
    assert [bytes(row) for row in CacheReader(folder).rows([d for digests, _ in batches for d in digests])] == rows
