"""The models that a config has answer, and those of which a folder's answers are."""

import pytest
import torch
from omegaconf import OmegaConf

from distill_tune.errors import UserError
from distill_tune.training.answers import MadeBy, _config_given, _require_same
from distill_tune.training.writers import open_writers

from torchtune.models.llama2 import llama2_tokenizer


def test_a_model_that_is_named_twice_is_told(student_folder):
    teachers = [
        {"_component_": "distill_tune.models.from_hf", "path": str(student_folder), "name": name} for name in "ab"
    ]
    cfg = OmegaConf.create({"teacher_model": teachers, "dtype": "fp32"})
    tokenizer = llama2_tokenizer(str(student_folder / "tokenizer.model"))
    with pytest.raises(UserError, match="teacher_model: a and b are the same model"):
        open_writers(cfg, "teacher_model", torch.device("cpu"), tokenizer)


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--config", "my own.yaml", "seed=1"], "'my own.yaml'"), ([], "CONFIG")]
)
def test_the_config_is_told_as_it_was_given(monkeypatch, arguments, told):
    monkeypatch.setattr("sys.argv", ["generate", *arguments])
    assert _config_given() == told


def test_answers_of_other_models_are_told(tmp_path, capsys):
    def made(*names):
        return MadeBy({name: {"content": name} for name in names}, {}, 0, None, "1")

    with pytest.raises(UserError, match="holds answers of teacher, this config's are of student; name another folder"):
        _require_same(tmp_path, made("teacher"), made("student"))
    _require_same(tmp_path, made("a"), made("a", "b"))
    assert capsys.readouterr().out == ""
    _require_same(tmp_path, made("a", "b"), made("b"))
    assert "has answers of a, too, which this config leaves out" in capsys.readouterr().out
