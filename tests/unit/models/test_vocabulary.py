import json
from types import SimpleNamespace

import pytest
import torch

from distill_tune import models
from distill_tune.errors import UserError


def model_with(vocab_size: int):
    return SimpleNamespace(output=torch.nn.Linear(4, vocab_size, bias=False, device="meta"))


def test_padding_rows_are_left_out_and_said(capsys):
    tokenizer = SimpleNamespace(vocab_size=151_665)
    assert models.common_vocabulary(model_with(151_936), 152_064, tokenizer) == 151_936
    assert "student 151936, teacher 152064" in capsys.readouterr().out
    assert models.common_vocabulary(model_with(100), 100, SimpleNamespace()) == 100
    assert capsys.readouterr().out == ""


def test_a_model_with_fewer_rows_than_tokens_is_refused():
    with pytest.raises(UserError, match="teacher_model: its vocabulary has 90 tokens, the tokenizer 100"):
        models.common_vocabulary(model_with(100), 90, SimpleNamespace(vocab_size=100))


def folder_with(tmp_path, name, vocabulary):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return folder


def test_tokenizer_files_are_compared(tmp_path):
    one = folder_with(tmp_path, "one", {f"t{i}": i for i in range(200)})
    same = folder_with(tmp_path, "same", {f"t{i}": i for i in range(210)})
    other = folder_with(tmp_path, "other", {f"t{i}": 199 - i for i in range(200)})
    models.check_tokenizers(one, same)
    models.check_tokenizers(one, tmp_path)  # nothing to compare with
    with pytest.raises(UserError, match="200 tokens have other ids"):
        models.check_tokenizers(one, other)
