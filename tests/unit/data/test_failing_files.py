"""Rows files that change while they are read, workers that die, and file systems that time out."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from tiny import ROWS

from distill_tune import disk, kept_digests
from distill_tune.config import instantiate
from distill_tune.data import prepare, prepare_rows, sources
from distill_tune.errors import UserError


@pytest.fixture
def prepared(tokenizer_file, tmp_path):
    config = OmegaConf.create(
        {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file), "max_seq_len": 64}
    )
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS * 40))

    def run():
        dataset = OmegaConf.create({"_component_": "distill_tune.data.instruct", "source": str(path)})
        return prepare_rows(dataset, instantiate(config), config)[0][0]

    run.path = path
    return run


@pytest.mark.parametrize("when", ["found", "tokenised"])
def test_a_file_that_changes_while_it_is_read_is_named(prepared, monkeypatch, when):
    module, name = {"found": (sources, "read_rows"), "tokenised": (prepare, "_tokenise_chunk")}[when]
    read = getattr(module, name)

    def changing(*arguments):
        prepared.path.write_text(json.dumps(ROWS * 41))
        return read(*arguments)

    monkeypatch.setattr(module, name, changing)
    monkeypatch.setattr(prepare, "usable_cpus", lambda: 1)
    with pytest.raises(UserError, match=r"dataset .*rows\.json: has changed while it was read; start again"):
        prepared()
    monkeypatch.setattr(module, name, read)
    assert len(prepared()) == len(ROWS) * 41  # nothing was kept


def test_rows_of_a_worker_that_dies_are_tokenised_in_this_process(prepared, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "usable_cpus", lambda: 2)
    own, read = os.getpid(), prepare._read

    def dying(index, *read_by):
        if os.getpid() != own and index == 700:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(index, *read_by)

    monkeypatch.setattr(prepare, "_read", dying)
    rows = prepared()
    assert len(rows) == len(ROWS) * 40
    told = capsys.readouterr().err
    assert "a worker that tokenised rows was killed, perhaps for want of memory; rows " in told
    assert [rows.origin(row) for row in (0, 2559)] == [f"{prepared.path}, row {number}" for number in (1, 2560)]


def failing(function, times: int, number: int):
    left = [times]

    def call(*arguments, **options):
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    return call


def test_a_file_system_that_times_out_is_asked_again(prepared, monkeypatch, capsys):
    monkeypatch.setattr(disk, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(kept_digests, "digest", failing(disk.digest, 2, errno.ETIMEDOUT))
    monkeypatch.setattr(sources, "read_rows", failing(sources.read_rows, 1, errno.ESTALE))
    assert len(prepared()) == len(ROWS) * 40
    told = capsys.readouterr().err
    assert told.count("Connection timed out; once more in 0 s") == 2
    assert told.count("Stale file handle; once more in 0 s") == 1


def test_it_is_asked_again_while_rows_are_taken_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(disk, "_WAITS", (0.0, 0.0, 0.0))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    rows = sources.load_dataset(str(tmp_path / "rows.jsonl"))
    assert len(rows) == 1
    monkeypatch.setattr(Path, "open", failing(Path.open, 1, errno.EIO))
    assert rows[0] == ROWS[0]
    assert "Input/output error; once more in 0 s" in capsys.readouterr().err


def test_one_that_stays_away_and_one_that_says_no_are_named(prepared, monkeypatch):
    monkeypatch.setattr(disk, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(kept_digests, "digest", failing(disk.digest, 99, errno.ETIMEDOUT))
    with pytest.raises(UserError, match=r"rows\.json: cannot be read: Connection timed out"):
        prepared()
    monkeypatch.setattr(kept_digests, "digest", failing(disk.digest, 1, errno.EACCES))
    with pytest.raises(UserError, match=r"rows\.json: cannot be read: Permission denied"):
        prepared()
