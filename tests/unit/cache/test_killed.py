"""A process that writes a cache is killed, at random and at each call: what is found then is whole, and in the end all
of it."""

import dataclasses
import errno
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from distill_tune.cache import (
    CacheReader,
    CacheWriter,
    Manifest,
    TopEncoding,
    begin,
    finish,
    is_whole,
    shard_files,
    write_output_layer,
    write_vocabulary,
)
from distill_tune.cache.shard import Shard
from distill_tune.disk import release_locks
from distill_tune.errors import UserError
from distill_tune.losses import LinearProjection, TopTokens
from distill_tune.models.vocabulary import Vocabulary

KILLS = int(os.environ.get("DISTILL_TUNE_TEST_KILLS", 15))
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
    if not any(writer.lacks(digests) for digests, _ in batches) and is_whole(folder, manifest):
        return
    for digests, rows in batches:
        if writer.lacks(digests):
            writer.add(digests, rows)
    writer.close()
    finish(folder, manifest, ["rows"])


def started(folder, batches, last_call: int = 0) -> int:
    """
    Args:
        last_call: of those that change the disk, in which the child dies; 0 for none.
    """
    if child := os.fork():
        return child
    status, calls = 1, itertools.count(1)

    def dying(function, half=None):
        def call(*arguments):
            if next(calls) == last_call:
                if half:
                    half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    write_bytes = Path.write_bytes
    Path.write_bytes = dying(write_bytes, lambda path, content: write_bytes(path, content[: len(content) // 2]))
    os.replace, os.fsync = dying(os.replace), dying(os.fsync)
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


@pytest.mark.parametrize("is_growing", [False, True])
def test_killed_in_any_call_that_changes_the_disk_it_is_whole(tmp_path, is_growing):
    batches, whole = [batch(number) for number in range(8)], tmp_path / "whole"
    before = tmp_path / "before"
    before.mkdir()
    if is_growing:
        assert os.waitpid(started(before, batches[:3]), 0)[1] == 0
    shutil.copytree(before, whole)
    assert os.waitpid(started(whole, batches), 0)[1] == 0
    wanted = {path.name: path.read_bytes() for path in whole.iterdir()}
    for call in itertools.count(1):
        folder = tmp_path / str(call)
        shutil.copytree(before, folder)
        if os.waitpid(started(folder, batches, call), 0)[1] == 0:
            break
        for path in shard_files(folder):
            assert path.read_bytes() == wanted[path.name]
        if (folder / "manifest.json").exists():
            Manifest.read(folder)
        assert os.waitpid(started(folder, batches), 0)[1] == 0
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert call > 12 - 4 * is_growing  # shards and manifests, of four calls each


def test_on_a_full_disk_what_was_closed_stays_and_it_is_told(tmp_path, monkeypatch):
    digests, rows = batch(0)
    begin(tmp_path, MADE)
    writer = CacheWriter(tmp_path, shard_bytes=1)
    writer.add(digests[:1], rows[:1])
    kept = [path.name for path in tmp_path.iterdir()]

    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for write in (
        lambda: writer.add(digests, rows),
        lambda: finish(tmp_path, MADE, []),
        lambda: write_vocabulary(tmp_path, Vocabulary({0: "a"}, frozenset())),
        lambda: write_output_layer(tmp_path, LinearProjection(torch.zeros(3, 2), None, None)),
    ):
        with pytest.raises(UserError, match="No space left on device; what was closed is there"):
            write()
    release_locks()
    assert [path.name for path in tmp_path.iterdir()] == kept
