"""Tokenised rows that are kept: found again, made anew where they are damaged, deleted when they are old."""

import dataclasses
import json
import os
import pwd
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tiny import ROWS

from distill_tune import disk
from distill_tune.cache_folder import cache_folder
from distill_tune.config import instantiate
from distill_tune.data import TokenisedRows, prepare_rows, row_cache, sources, tokenised_rows
from distill_tune.errors import UserError

DAY = 86_400


def some_rows() -> TokenisedRows:
    tokens = torch.arange(3, 23, dtype=torch.int32)
    offsets = torch.tensor([0, 4, 11, 20])
    teacher = TokenisedRows(tokens + 1, tokens + 2, offsets.clone(), packed=False, max_seq_len=9)
    return TokenisedRows(
        tokens,
        tokens.clone(),
        offsets,
        packed=False,
        max_seq_len=9,
        num_bad=2,
        files=("rows.json",),
        teacher=teacher,
        teacher_ids=torch.tensor([0, 1, 0], dtype=torch.int32),
        origins=torch.tensor([[0, 1], [0, 2], [0, 5]], dtype=torch.int32),
    )


def test_rows_come_back_as_they_were_kept(tmp_path):
    row_cache.write_rows(tmp_path / "kept", some_rows())
    found = row_cache.read_rows(tmp_path / "kept")
    assert found is not None and found.fingerprint == some_rows().fingerprint
    assert (found.num_bad, found.max_seq_len, found.origin(2)) == (2, 9, "rows.json, row 5")
    assert found.teacher_ids.equal(some_rows().teacher_ids)
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]
    row_cache.write_rows(tmp_path / "kept", some_rows())  # as of two runs that begin together
    assert row_cache.read_rows(tmp_path / "kept") is not None


@pytest.mark.parametrize("damage", ["flipped", "cut", "zeros", "missing"])
@pytest.mark.parametrize("name", ["rows.safetensors", "SHA256SUMS"])
def test_kept_rows_that_are_damaged_are_told_and_not_taken(tmp_path, capsys, name, damage):
    row_cache.write_rows(tmp_path / "kept", some_rows())
    path = tmp_path / "kept" / name
    content = bytearray(path.read_bytes())
    content[len(content) - 20] ^= 1
    damaged = {"flipped": content, "cut": content[:-9], "zeros": bytes(len(content))}
    path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
    assert row_cache.read_rows(tmp_path / "kept") is None
    assert "; made anew" in capsys.readouterr().err


def test_rows_that_a_disk_refuses_are_told_and_go_on(tmp_path, capsys, monkeypatch):
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_cache, "save_file", full)
    row_cache.write_rows(tmp_path / "kept", some_rows())
    assert "could not be kept" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_who_does_not_check_kept_rows_reads_none_of_them_and_knows_their_fingerprint(tmp_path, monkeypatch):
    row_cache.write_rows(tmp_path / "kept", some_rows())
    known = some_rows().fingerprint
    monkeypatch.setattr(disk, "digest", None)  # would be called
    monkeypatch.setattr(tokenised_rows.hashlib, "sha256", None)
    found = row_cache.read_rows(tmp_path / "kept", check=False)
    assert found is not None and found.fingerprint == known
    with pytest.raises(TypeError):
        row_cache.damage(tmp_path / "kept")
    with pytest.raises(TypeError):  # of other rows than were kept it is not known
        _ = dataclasses.replace(found, tokens=found.tokens + 1).fingerprint


@pytest.fixture
def prepared(tokenizer_file, tmp_path):
    config = OmegaConf.create(
        {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file), "max_seq_len": 64}
    )
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    dataset = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json")})
    return lambda: prepare_rows(dataset, instantiate(config), config)[0][0]


def test_a_line_says_that_tokens_are_not_made_anew_and_where_they_are(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", str(tmp_path / "cache"))
    made = prepared()
    assert capsys.readouterr().out == ""
    assert prepared().fingerprint == made.fingerprint
    (kept,) = (tmp_path / "cache" / "rows").iterdir()
    told = f"dataset {tmp_path / 'rows.json'}: was tokenised before, the tokens are taken from {kept}\n"
    assert capsys.readouterr().out == told


def last_used(folder: Path, days: float) -> None:
    os.utime(folder, (time.time() - days * DAY,) * 2)


def test_what_nobody_has_used_for_a_month_is_deleted_when_rows_are_kept(tmp_path):
    for name, days in (("old", 31), ("tmp_of_a_kill", 31), ("younger", 29), ("taken", 31)):
        row_cache.write_rows(tmp_path / name, some_rows())
        last_used(tmp_path / name, days)
    assert row_cache.read_rows(tmp_path / "taken") is not None
    row_cache.write_rows(tmp_path / "new", some_rows())
    assert {path.name for path in tmp_path.iterdir()} == {"younger", "taken", "new"}


def test_beyond_so_many_bytes_the_oldest_go_and_those_of_this_week_stay(tmp_path, monkeypatch):
    for name, days in (("oldest", 20), ("older", 10), ("of_this_week", 6), ("of_today", 0)):
        row_cache.write_rows(tmp_path / name, some_rows())
        last_used(tmp_path / name, days)
    size = sum(file.stat().st_size for file in (tmp_path / "oldest").iterdir())
    monkeypatch.setattr(row_cache, "_MOST_BYTES", 4.5 * size)
    row_cache.write_rows(tmp_path / "new", some_rows())
    assert {path.name for path in tmp_path.iterdir()} == {"older", "of_this_week", "of_today", "new"}
    monkeypatch.setattr(row_cache, "_MOST_BYTES", 1.5 * size)
    row_cache.write_rows(tmp_path / "new", some_rows())
    assert {path.name for path in tmp_path.iterdir()} == {"of_this_week", "of_today", "new"}


def test_a_cache_that_cannot_be_written_or_looked_into_is_told_and_rows_are_made_all_the_same(
    prepared, monkeypatch, capsys
):
    monkeypatch.setenv("DISTILL_TUNE_CACHE", "/proc/nobody_can_write_here")
    assert len(prepared()) == len(ROWS)
    assert "could not be kept in /proc/nobody_can_write_here/rows: " in capsys.readouterr().err
    look = os.stat

    def refusing(path, *arguments, **options):
        if str(path).startswith("/proc/nobody"):
            raise PermissionError(13, "Permission denied")
        return look(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refusing)
    assert len(prepared()) == len(ROWS)
    assert "could not be kept in /proc/nobody_can_write_here/rows: " in capsys.readouterr().err


def test_a_user_without_a_home_folder_gets_rows_and_a_line(prepared, monkeypatch, capsys):
    def unknown(number: int) -> None:  # as for `docker --user 54321`
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "DISTILL_TUNE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() is None
    assert len(prepared()) == len(ROWS)
    assert "tokenised rows are not kept; set DISTILL_TUNE_CACHE" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"dataset ~/rows\.json: no such file"):
        sources.load_dataset("~/rows.json")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/distill_tune")
    monkeypatch.setenv("DISTILL_TUNE_CACHE", "/own")
    assert cache_folder() == Path("/own")
