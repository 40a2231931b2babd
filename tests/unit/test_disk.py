"""Files put in place: who may read them, by what two of them are told apart, and who has a folder to himself."""

import fcntl
import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from distill_tune.disk import keep_to_oneself, put_in_place, release_lock, sampled_digest, write_text


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_mode_of_the_umask_whatever_library_wrote_them(tmp_path, umask):
    partial, folder = tmp_path / "partial", tmp_path / "model"
    partial.mkdir()
    save_file({"weight": torch.ones(2)}, partial / "model.safetensors")
    (partial / "config.json").write_text("{}")
    (partial / "original").mkdir()
    put_in_place(partial, folder)
    assert keep_to_oneself(folder)
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert modes.pop("original") == 0o777 & ~umask
    assert modes == dict.fromkeys(["model.safetensors", "config.json", ".lock"], 0o666 & ~umask)


def test_a_file_is_on_the_disk_before_it_takes_another_ones_place_and_its_name_after(tmp_path, monkeypatch):
    found, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: found.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", lambda *paths: found.append("replaced") or replace(*paths))
    write_text(tmp_path / "results.json", "{}\n")
    assert found == [(tmp_path / "results.json").stat().st_ino, "replaced", tmp_path.stat().st_ino]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_who_asks_at_that_instant_whether_a_folder_is_locked_keeps_no_run_from_it(tmp_path):
    with (tmp_path / ".lock").open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.03, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        assert keep_to_oneself(tmp_path)
        release_lock(tmp_path)
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not keep_to_oneself(tmp_path)


@pytest.mark.parametrize("size", [0, 1, 4_095, 4_097, 1_000_000, 4 * 2**20])
def test_a_small_file_counts_whole(tmp_path, size):
    file = tmp_path / "weights"
    file.write_bytes(content := bytearray(os.urandom(size)))
    found = {sampled_digest([file])}
    places = range(0, size, max(1, size // 7))
    for place in places:
        content[place] ^= 1
        file.write_bytes(content)
        found.add(sampled_digest([file]))
    assert len(found) == 1 + len(places)


def test_of_a_large_file_both_ends_its_size_and_every_part_count(tmp_path):
    size, file = 64 * 2**20, tmp_path / "weights"

    def digest(changed: slice, size: int = size) -> str:
        content = bytearray(size)
        content[changed] = b"x" * len(content[changed])
        file.write_bytes(content)
        return sampled_digest([file])

    part = size // 512
    changes = [slice(0, 0), slice(0, 1), slice(size - 1, size), slice(size // 2, size // 2 + part)]
    assert len({*map(digest, changes), digest(slice(0, 0), size + 1)}) == 5
