"""Tokenised rows that are kept: found again, and made anew where they are damaged."""

import pytest
import torch

from distill_tune.data import TokenisedRows, row_cache


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
