"""What a path given to export means."""

import shutil

import pytest
import torch
from export_folders import VOCAB_SIZE

from distill_tune.errors import UserError
from distill_tune.export.source import open_source


def test_of_a_run_the_model_is_taken_and_of_an_adapter_the_factors(run):
    whole, factors = open_source(run), open_source(run, as_adapter=True)
    assert (whole.folder, factors.folder) == (run / "model", run / "adapter")
    assert (whole.run, whole.name, factors.run, factors.name) == (run, "mine", run, "mine")
    assert whole.checkpoint.adapter is None
    assert factors.checkpoint.adapter is not None
    assert open_source(run / "model").run == run
    for name, weight in whole.weights(torch.float32).items():  # merged here as peft has merged it
        torch.testing.assert_close(factors.weights(torch.float32)[name], weight, rtol=0, atol=1e-6)


def test_a_folder_alone_is_of_no_run(base):
    source = open_source(base)
    assert (source.run, source.name, source.vocab_size) == (None, "base", VOCAB_SIZE)


def test_an_adapter_without_a_tokenizer_has_its_bases(base, run, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "adapter", ignore=shutil.ignore_patterns("tokenizer*"))
    assert open_source(tmp_path / "adapter").tokenizer.folder == base


def test_what_is_no_model_is_told(tmp_path):
    (tmp_path / "file").touch()
    for path, told in (
        (tmp_path / "nothing", "no such folder; name"),
        (tmp_path / "file", "is a file; name"),
        (tmp_path, r"has no config\.json; name"),
    ):
        with pytest.raises(UserError, match=f"export {path}: {told}"):
            open_source(path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(UserError, match="is of a run that has left no model yet"):
        open_source(tmp_path)


def test_of_a_run_of_every_parameter_there_is_no_adapter(run, tmp_path):
    shutil.copytree(run, tmp_path / "mine", ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(UserError, match=r"trained every parameter and left .*mine/model alone: there is no adapter"):
        open_source(tmp_path / "mine", as_adapter=True)


def test_a_model_without_a_tokenizer_is_told(base, tmp_path):
    shutil.copytree(base, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="has no tokenizer"):
        open_source(tmp_path / "bare")
