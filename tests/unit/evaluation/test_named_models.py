"""Models by their paths: what each is, how large, and what is wrong with it before its weights are read."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from omegaconf import OmegaConf
from tiny import write_model, write_model_of_another_tokenizer

from distill_tune.config.files import demo_model_folder
from distill_tune.errors import UserError
from distill_tune.evaluation import labels_of, open_named, prepare
from distill_tune.models import vocabulary

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)  # isort: skip
from torchtune.models.llama2 import llama2_tokenizer


@pytest.fixture
def tokenizer(tokenizer_file):
    return llama2_tokenizer(str(tokenizer_file))


def opened(path, tokenizer, label="mine"):
    return open_named(label, path if isinstance(path, dict) else str(path), tokenizer, torch.float32)


def test_a_folder_a_run_and_an_adapter_are_told_apart(tmp_path, student_folder, tokenizer):
    shutil.copytree(student_folder, tmp_path / "run" / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(student_folder)
    adapter = peft.get_peft_model(model, peft.LoraConfig(target_modules=["v_proj"]))
    adapter.save_pretrained(tmp_path / "other_run" / "adapter")
    found = [
        opened(path, tokenizer)
        for path in (student_folder, tmp_path / "run", tmp_path / "other_run", tmp_path / "other_run" / "adapter")
    ]
    assert [model.kind for model in found] == ["hugging face folder", "run", "run", "adapter"]
    assert len({model.parameters for model in found}) == 1
    weights = (student_folder / "model.safetensors").stat().st_size
    factors = (tmp_path / "other_run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert [model.file_bytes for model in found] == [weights, weights, weights + factors, weights + factors]
    assert all(model.tokenizer is None and model.context == 131072 for model in found)
    assert found[0].shape == found[1].shape


def test_models_that_travel_along_are_named_as_such(tmp_path):
    tokenizer = llama2_tokenizer(str(demo_model_folder("student") / "tokenizer.model"))
    found = open_named("teacher", "demo:teacher", tokenizer, torch.float32)
    assert (found.kind, found.path, found.parameters) == ("demo", "demo:teacher", 5770496)


@pytest.mark.torchao
def test_a_folder_that_torchao_has_quantised_has_the_parameters_that_it_had(tmp_path, student_folder, tokenizer):
    from torchao.quantization import Int8WeightOnlyConfig

    settings = transformers.TorchAoConfig(Int8WeightOnlyConfig(version=2))
    model = transformers.AutoModelForCausalLM.from_pretrained(student_folder, quantization_config=settings)
    model.save_pretrained(tmp_path / "int8")
    shutil.copy(student_folder / "tokenizer.model", tmp_path / "int8")
    shutil.copy(student_folder / "tokenizer_config.json", tmp_path / "int8")
    found, plain = opened(tmp_path / "int8", tokenizer), opened(student_folder, tokenizer)
    assert (found.kind, found.parameters) == ("torchao", plain.parameters)
    assert found.shape != plain.shape


def test_a_model_of_another_tokenizer_brings_its_own(tmp_path, tokenizer, tokenizer_file, capsys):
    folder = write_model_of_another_tokenizer(tmp_path / "other", tokenizer_file, seed=3)
    found = opened(folder, tokenizer)
    assert found.tokenizer.folder == folder
    assert "models.mine: its tokenizer, that of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("nowhere", "models.mine nowhere: no such folder, or it has no config.json"),
        ("nowhere.gguf", "models.mine nowhere.gguf: no such file"),
        ("demo:nobody", "no such model travels with the package; there are demo:bpe_teacher"),
        ({"path": "demo:student", "tokenizer": "nowhere"}, "models.mine.tokenizer=nowhere: no such folder"),
        ({"path": "a", "tokeniser": "b"}, "models.mine={'path': 'a', 'tokeniser': 'b'}: must be a path, or {path: ..."),
    ],
)
def test_what_is_no_model_is_told_with_its_label(tokenizer, named, told):
    with pytest.raises(UserError) as error:
        opened(named, tokenizer)
    assert told in str(error.value)


def test_weights_that_are_not_those_of_the_config_are_told_before_they_are_read(tmp_path, student_folder, tokenizer):
    folder = shutil.copytree(student_folder, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"models\.mine .*wrong: .*does not fit its weights.*the checkpoint lacks"):
        opened(folder, tokenizer)


def documents(tmp_path, named, tokenizer, **settings):
    (tmp_path / "rows.json").write_text(json.dumps([{"instruction": "What is 1 plus 2?", "output": "3, done."}] * 2))
    component = {"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "rows.json")}
    return prepare(named, OmegaConf.create(component), tokenizer, **settings)


def test_a_token_that_a_model_lacks_is_told(tmp_path, tokenizer, tokenizer_file, student_folder):
    small = write_model(tmp_path / "small", tokenizer_file, seed=1, vocab_size=40)
    (small / "tokenizer.model").unlink()
    (small / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match=r"models\.mine: .*knows 40 tokens where|models\.mine knows 40"):
        documents(tmp_path, [opened(student_folder, tokenizer, "a"), opened(small, tokenizer)], tokenizer)


def test_a_token_that_a_model_reads_otherwise_is_told(tmp_path, tokenizer, student_folder, monkeypatch):
    other = shutil.copytree(student_folder, tmp_path / "other")
    monkeypatch.setattr(vocabulary, "_used", lambda differing, used: "7 ('a' is 'b')")
    with pytest.raises(UserError, match=r"models\.mine: .*other: its tokenizer is not that of .*7 \('a' is 'b'\)"):
        documents(tmp_path, [opened(student_folder, tokenizer, "a"), opened(other, tokenizer)], tokenizer)


def test_two_models_of_one_label_and_a_stride_that_is_too_long_are_told(tmp_path, tokenizer, student_folder):
    twice = [opened(student_folder, tokenizer), opened(student_folder, tokenizer)]
    with pytest.raises(UserError, match=r"models\.mine: two models have this label"):
        documents(tmp_path, twice, tokenizer)
    with pytest.raises(UserError, match="stride=8: must be from 1 to 7"):
        documents(tmp_path, twice[:1], tokenizer, context=8, stride=8)


def test_a_label_is_the_last_name_that_tells():
    assert labels_of(["outputs/a/model", "outputs/b", "x.gguf"]) == ["a", "b", "x.gguf"]
    assert labels_of(["one/a/model", "two/a"]) == ["one/a/model", "two/a"]
    assert labels_of(["outputs/before", "outputs/b"], taken=("before",)) == ["outputs/before", "b"]
    assert labels_of(["."]) == ["."]
