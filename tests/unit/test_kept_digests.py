"""A large file is hashed once, and again when its content can be another."""

import os
import time

import pytest

from distill_tune import kept_digests
from distill_tune.disk import digest
from distill_tune.kept_digests import delete_old_digests, kept_digest

SIZE = 2**20


@pytest.fixture
def hashed(tmp_path, monkeypatch):
    """The files that are hashed, in order."""
    names = []

    def counting(path):
        names.append(path.name)
        return digest(path)

    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_digests, "digest", counting)
    monkeypatch.setattr(kept_digests, "_JUST_NOW", -1.0)
    return names


def test_a_large_file_is_hashed_once_and_a_small_one_each_time(tmp_path, hashed):
    (tmp_path / "large").write_bytes(b"a" * SIZE)
    (tmp_path / "small").write_bytes(b"a" * 9)
    for name in ("large", "large", "small", "small"):
        assert kept_digest(tmp_path / name) == digest(tmp_path / name)
    assert hashed == ["large", "small", "small"]


def test_another_content_of_the_same_size_and_time_is_hashed_again(tmp_path, hashed):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"a" * SIZE)
    status = path.stat()
    before = kept_digest(path)
    time.sleep(0.02)  # a tick of the kernel's clock
    path.write_bytes(b"b" * SIZE)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as cp -p and rsync -t do
    assert kept_digest(path) == digest(path) != before
    (tmp_path / "other").write_bytes(b"c" * SIZE)
    os.replace(tmp_path / "other", path)
    assert kept_digest(path) == digest(path)
    assert len(hashed) == 3


def test_of_a_file_that_has_just_changed_nothing_is_kept(tmp_path, hashed, monkeypatch):
    monkeypatch.setattr(kept_digests, "_JUST_NOW", 60.0)
    (tmp_path / "rows").write_bytes(b"a" * SIZE)
    kept_digest(tmp_path / "rows")
    kept_digest(tmp_path / "rows")
    assert hashed == ["rows", "rows"]


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"state": 1}'])
def test_what_was_kept_and_is_damaged_is_not_taken(tmp_path, hashed, content):
    (tmp_path / "rows").write_bytes(b"a" * SIZE)
    kept_digest(tmp_path / "rows")
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    kept.write_bytes(content)
    assert kept_digest(tmp_path / "rows") == digest(tmp_path / "rows")
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_changes_no_digest_and_an_old_one_goes(tmp_path, hashed, monkeypatch):
    (tmp_path / "rows").write_bytes(b"a" * SIZE)
    kept_digest(tmp_path / "rows")
    (kept,) = (tmp_path / "cache" / "digests").iterdir()
    delete_old_digests()
    assert kept.is_file()
    os.utime(kept, (0, 0))
    delete_old_digests()
    assert not kept.exists()
    monkeypatch.setenv("DISTILL_TUNE_CACHE", "/proc/nobody_can_write_here")
    assert kept_digest(tmp_path / "rows") == digest(tmp_path / "rows")
