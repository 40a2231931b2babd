"""Exports from the first check to the folder: written, opened by their tools, compared, kept or set aside."""

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import sys

import pytest
import torch
from export_folders import write_base
from safetensors.torch import load_file, save_file
from stand_in_llama_cpp import stand_in
from tiny_tokenizer import TEMPLATE

from distill_tune.cli.main import main
from distill_tune.config.files import local_path
from distill_tune.errors import UserError
from distill_tune.export.formats import find_format
from distill_tune.export.gguf import write_gguf
from distill_tune.export.gguf.tokenizer import Tokenizer
from distill_tune.export.ship import export

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
FOR_TORCHTUNE = {
    "llama3": {"rope_parameters": LLAMA3_ROPE},
    "mistral": {"sliding_window": 24},  # it then reads no more
    "phi3": {"sliding_window": None},
}
TOKENS = torch.arange(5, 45).view(2, 20)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(TOKENS).logits.float()


def by_transformers(folder, **settings):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32} | settings)


def read(file) -> dict:
    return json.loads(file.read_text())


def writing(damage):
    """In place of find_format: the folder of transformers, which ``damage`` changes once it is written."""
    form, _ = find_format("hf")

    def write(source, folder, settings):
        told = form.write(source, folder, settings)
        damage(folder)
        return told

    return lambda name, any_gguf: (dataclasses.replace(form, write=write), "")


@pytest.mark.parametrize(("dtype", "loss"), [("fp32", 0.0), ("bf16", 0.3), ("fp16", 0.05)])
def test_a_merged_folder_in_each_dtype(run, tmp_path, dtype, loss):
    result = export(run, "hf", tmp_path / "out", dtype=dtype)
    assert result.passed
    assert {check.name for check in result.checks} == {
        "token ids", "chat template", "end tokens", "distributions", "logits",
    }  # fmt: skip
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {names[dtype]}
    found, wanted = logits(by_transformers(tmp_path / "out")), logits(by_transformers(run / "model"))
    assert (found - wanted).abs().max() <= loss + 1e-4
    assert result.agreement.max_difference <= loss + 1e-4
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert read(tmp_path / "out" / "tokenizer_config.json")["chat_template"] == TEMPLATE
    assert read(tmp_path / "out" / "generation_config.json")["eos_token_id"] == 1
    assert read(tmp_path / "out" / "export.json")["passed"]


def test_shards_have_an_index_and_open(run, tmp_path):
    result = export(run, "hf", tmp_path / "out", max_shard_size="100KB")
    shards = [name for name in result.files if name.startswith("model-")]
    assert len(shards) > 2
    assert max(result.files[name] for name in shards) < 120_000
    assert torch.equal(logits(by_transformers(tmp_path / "out")), logits(by_transformers(run / "model")))


@pytest.mark.parametrize("size", ["many", "5", "0GB", "-1GB", "nanGB"])
def test_a_size_of_shards_that_is_none_ends_with_2_before_anything_is_read(tmp_path, capsys, size):
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "nowhere"), "--to", "hf", f"--max-shard-size={size}"])
    assert ended.value.code == 2
    assert f"--max-shard-size {size}: must be a number above 0 and KB, MB, GB or TB" in capsys.readouterr().err


def test_a_failure_amid_the_writing_leaves_nothing(base, tmp_path, monkeypatch):
    def full(*arguments, **settings):
        raise OSError("no space left")

    monkeypatch.setattr("distill_tune.training.export.save_torch_state_dict", full)
    with pytest.raises(OSError, match="no space left"):
        export(base, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_signal_amid_the_writing_leaves_nothing(base, tmp_path, monkeypatch, capsys):
    stopped = writing(lambda folder: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr("distill_tune.export.ship.find_format", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(base), "--to", "hf", "--output", str(tmp_path / "out")])
    assert ended.value.code == 128 + signal.SIGTERM
    assert "export: stopped by SIGTERM; nothing is left of it" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_adapter_opens_with_peft_on_its_base(base, run, tmp_path):
    from peft import PeftModel

    result = export(run, "adapter", tmp_path / "out", base_model="maker/Base")
    assert result.passed
    assert result.tool.startswith("peft ")
    assert read(tmp_path / "out" / "adapter_config.json")["base_model_name_or_path"] == "maker/Base"
    found = logits(PeftModel.from_pretrained(by_transformers(base), tmp_path / "out"))
    torch.testing.assert_close(found, logits(by_transformers(run / "model")), rtol=0, atol=1e-4)


def test_of_a_whole_model_there_are_no_factors(base, tmp_path):
    with pytest.raises(UserError, match="is a whole model, without factors"):
        export(base, "adapter", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["llama2", "llama3", "mistral", "qwen2", "phi3"]
)  # those that torchtune has a builder for
def test_torchtunes_own_builder_and_checkpointer_read_it(tmp_path, name):
    folder = write_base(tmp_path / name, name, **FOR_TORCHTUNE.get(name, {}))
    result = export(folder, "torchtune", tmp_path / "out")
    assert result.passed, result.checks
    assert result.tool.startswith("torchtune ")
    assert result.agreement.max_difference < 1e-3
    assert not [file for file in tmp_path.iterdir() if file.name not in (name, "out")]


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("qwen3", "torchtune 0.6 has no builder for Qwen3ForCausalLM"),
        ("gemma2", "caps Gemma 2's last hidden states, and not its logits"),
        ("qwen2_yarn", "no place for a rope scaling of the kind yarn"),
        ("llama_with_biases", "no place for a rope scaling of the kind linear or biases"),
        ("llama3", "no place for rope scaling with other bounds than Llama 3's"),
        ("phi3_partly_turned", "no place for rope on a part of a head"),
    ],
)
def test_what_torchtunes_builders_cannot_hold_is_refused(tmp_path, name, lacking):
    folder = write_base(tmp_path / name, name)
    with pytest.raises(UserError, match=lacking):
        export(folder, "torchtune", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.torchao
@pytest.mark.parametrize(
    ("kind", "most", "tensor"),
    [("int8", 1e-3, "Int8Tensor"), ("fp8", 1e-2, "Float8Tensor"), ("int8-int4", 0.3, "IntxUnpackedToInt8Tensor")],
)
def test_torchao_folders_are_what_transformers_loads(tmp_path, kind, most, tensor):
    folder = write_base(tmp_path / "model", "llama3", intermediate_size=96)
    with torch.no_grad():  # such weights as trained models have
        model = by_transformers(folder)
        for parameter in model.parameters():
            parameter.mul_(0.3)
        model.save_pretrained(folder)
    result = export(folder, f"torchao:{kind}", tmp_path / "out", dtype="fp32")
    assert result.passed, result.checks
    assert 0 < result.agreement.kl < most
    opened = by_transformers(tmp_path / "out", dtype="auto")
    assert type(opened.model.layers[1].mlp.down_proj.weight).__name__ == tensor
    assert type(opened.lm_head.weight).__name__ == "Parameter"
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.torchao
def test_rows_that_no_group_divides_stay_whole_and_are_told(base, tmp_path, capsys):
    result = export(base, "torchao:int8-int4", tmp_path / "out", max_kl=100)  # its MLP is 112 wide
    out = capsys.readouterr().out
    assert "down_proj stay in 16 bits: rows of 112 weights, no multiple of 32" in out
    opened = by_transformers(tmp_path / "out", dtype="auto")
    assert type(opened.model.layers[0].mlp.down_proj.weight).__name__ == "Parameter"
    assert type(opened.model.layers[0].mlp.up_proj.weight).__name__ == "IntxUnpackedToInt8Tensor"
    assert result.passed
    narrow = write_base(tmp_path / "narrow", "qwen2", hidden_size=48, intermediate_size=80, num_key_value_heads=2)
    with pytest.raises(UserError, match="no row of this model is a multiple of 32 weights"):
        export(narrow, "torchao:int8-int4", tmp_path / "other")


@pytest.mark.torchao
def test_weights_that_were_trained_for_a_format_are_what_they_were_in_training(tmp_path, capsys):
    folder = write_base(tmp_path / "trained", "qwen2", intermediate_size=128)
    note = {"fits": "torchao:int8-int4", "groupsize": 64}
    (folder / "quantization_aware_training.json").write_text(json.dumps(note))
    result = export(folder, "torchao:int8-int4", tmp_path / "out")
    assert result.passed
    assert result.agreement.kl < 1e-6  # from the source with the same rounding, activations' included
    assert export(folder, "torchao:int8", tmp_path / "other", max_kl=100).agreement.kl > 1e-6
    assert "to 4.25 bits with their scales" in capsys.readouterr().out
    opened = by_transformers(tmp_path / "out", dtype="auto")
    assert opened.model.layers[0].mlp.up_proj.weight.block_size == [1, 64]
    assert read(tmp_path / "out" / "quantization_aware_training.json") == note


def test_int4_is_refused_where_its_kernels_are_not(base, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="this machine has no CUDA device"):
        export(base, "torchao:int4", tmp_path / "out")


def test_what_is_not_as_its_source_is_set_aside_and_ends_with_1(base, tmp_path, monkeypatch, capsys):
    def broken(folder):
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"].mul_(1.5)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr("distill_tune.export.ship.find_format", writing(broken))
    with pytest.raises(SystemExit) as ended:
        main(["export", str(base), "--to", "hf", "--output", str(tmp_path / "out")])
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert "distributions  FAILED" in told.out
    assert "left in " in told.err
    assert not (tmp_path / "out").exists()
    assert not read(tmp_path / "out.failed" / "export.json")["passed"]


def test_what_its_tool_cannot_open_is_set_aside_too(base, tmp_path, monkeypatch):
    def damage(folder):
        (folder / "model.safetensors").write_bytes(b"nothing")

    monkeypatch.setattr("distill_tune.export.ship.find_format", writing(damage))
    result = export(base, "hf", tmp_path / "out")
    assert [check.name for check in result.checks] == ["opened"]
    assert result.folder == tmp_path / "out.failed"
    assert read(tmp_path / "out.failed" / "export.json")["agreement"]["kl"] is None


def test_a_bound_of_the_users_own(base, tmp_path):
    result = export(base, "hf", tmp_path / "out", dtype="bf16", max_kl=0.0)
    assert [check.name for check in result.checks if not check.passed] == ["distributions", "logits"]
    assert result.folder == tmp_path / "out.failed"
    assert export(base, "hf", tmp_path / "out", dtype="bf16").passed
    assert not (tmp_path / "out.failed").exists()


def test_an_earlier_export_is_replaced_and_nothing_else(base, tmp_path):
    assert export(base, "hf", tmp_path / "out").passed
    (tmp_path / "out" / "stale").write_text("")
    assert export(base, "hf", tmp_path / "out").passed
    assert not (tmp_path / "out" / "stale").exists()
    (tmp_path / "mine").mkdir()
    for place in (tmp_path / "mine", base):
        with pytest.raises(UserError, match="is there already, and no earlier export"):
            export(base, "hf", place)
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    with pytest.raises(UserError, match="is there already, and no earlier export"):
        export(tmp_path / "again", "hf", tmp_path / "again")
    (tmp_path / "run").mkdir()
    (tmp_path / "again").rename(tmp_path / "run" / "model")
    with pytest.raises(UserError, match="is there already, and no earlier export"):
        export(tmp_path / "run", "hf", tmp_path / "run" / "model")


def test_a_tokenizer_that_would_be_opened_as_another_fails(base, tmp_path, monkeypatch):
    def swapped(folder):
        file = folder / "tokenizer.json"
        content = read(file)
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
        file.write_text(json.dumps(content))
        (folder / "chat_template.jinja").write_text("lost")

    monkeypatch.setattr("distill_tune.export.ship.find_format", writing(swapped))
    result = export(base, "hf", tmp_path / "out")
    assert [check.name for check in result.checks if not check.passed] == ["token ids", "chat template"]


@pytest.mark.parametrize("name", ["llama3", "mistral", "gemma3", "phi3_partly_turned"])
def test_gguf_files_hold_the_same_weights_and_tokenizer(tmp_path, name):
    folder = write_base(tmp_path / name, name, num_hidden_layers=6 if name == "gemma3" else 2)
    result = export(folder, "gguf:F32", tmp_path / "out")
    assert result.passed, result.checks
    assert result.agreement.max_difference < 1e-4
    assert sorted(result.files) == ["Modelfile", "README.md", "export.json", f"{name}-f32.gguf"]


SAID = {
    "rope.freq_base": (70_000.0, "ropes: GGUF says"),
    "attention.layer_norm_rms_epsilon": (1e-2, "norm_eps: GGUF says 0.0099"),
    "context_length": (4096, "a length of 4096 tokens, not 128"),
}


def saying(**otherwise):
    """In place of what writes the settings of a GGUF file: with others."""
    from distill_tune.export.gguf import write

    add_settings = write._add_settings
    return lambda writer, values: add_settings(writer, values | otherwise)


@pytest.mark.parametrize("name", SAID)
def test_gguf_files_with_other_settings_than_the_source_fail(tmp_path, monkeypatch, name):
    value, told = SAID[name]
    monkeypatch.setattr("distill_tune.export.gguf.write._add_settings", saying(**{name: value}))
    result = export(write_base(tmp_path / "model", "llama3"), "gguf:f32", tmp_path / "out")
    (failed,) = (check for check in result.checks if not check.passed)
    assert (failed.name, failed.found[: len(told)]) == ("settings", told)


class InsteadOfLlamaCpp:
    """Its converter: by our own writer, with the length of the model's and without its windows."""

    def __init__(self, **otherwise):
        self.otherwise = otherwise

    def write(self, folder, file, kind):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distill_tune.export.gguf.write._add_settings", saying(**self.otherwise))
            return write_gguf(folder, file, kind).lines()


def test_files_of_llama_cpp_are_held_against_the_source_too(tmp_path, monkeypatch):
    folder = write_base(tmp_path / "model", "mistral")
    for otherwise, passed, told in (
        ({"context_length": 128}, True, "the source's, up to 8 tokens: llama.cpp leaves its windows out"),
        ({"rope.freq_base": 70_000.0}, False, "ropes: GGUF says"),
    ):
        tool = InsteadOfLlamaCpp(**otherwise)
        monkeypatch.setattr("distill_tune.export.gguf_file.LlamaCpp.find", lambda folder, tool=tool: tool)
        result = export(folder, "gguf:f32", tmp_path / "out", llama_cpp=tmp_path)
        assert result.passed == passed
        (check,) = (check for check in result.checks if check.name == "settings")
        assert check.found.startswith(told)


def test_llama_cpps_converter_is_told_of_spaces_before_texts(tmp_path, monkeypatch):
    class Asked:
        def write(self, folder, file, kind):
            raise UserError(f"told {read(folder / 'tokenizer_config.json')['add_prefix_space']}")

    monkeypatch.setattr("distill_tune.export.gguf_file.LlamaCpp.find", lambda folder: Asked())
    with pytest.raises(UserError, match="told False"):
        export(local_path("demo:student"), "gguf:q4_k_m", tmp_path / "out", llama_cpp=tmp_path)


def test_a_gguf_file_that_ends_an_answer_otherwise_fails(tmp_path, monkeypatch):
    add_to = Tokenizer.add_to
    other = {"eos": 1, "eot": 9}
    monkeypatch.setattr(Tokenizer, "add_to", lambda self, writer: add_to(_with_ids(self, other), writer))
    result = export(write_base(tmp_path / "model", "llama3"), "gguf:f32", tmp_path / "out")
    (failed,) = (check for check in result.checks if not check.passed)
    assert (failed.name, failed.found) == ("end tokens", "1, 9; it should be 1")


def _with_ids(tokenizer, other):
    return dataclasses.replace(tokenizer, ids=tokenizer.ids | other)


def test_a_gguf_file_that_begins_texts_otherwise_fails(tmp_path, monkeypatch):
    add_to = Tokenizer.add_to

    def add_bos(self, writer):
        add_to(dataclasses.replace(self, add_bos=True, ids=self.ids | {"bos": 7}), writer)

    monkeypatch.setattr(Tokenizer, "add_to", add_bos)
    result = export(write_base(tmp_path / "model", "llama3"), "gguf:f32", tmp_path / "out")
    failed = {check.name: check.found for check in result.checks if not check.passed}
    assert failed["around texts"] == "7 before, nothing behind; it should be nothing before, nothing behind"


def test_a_gguf_file_that_puts_other_spaces_into_chats_fails(tmp_path, monkeypatch, capsys):
    add_to = Tokenizer.add_to

    def with_spaces(self, writer):
        add_to(dataclasses.replace(self, add_space_prefix=True), writer)

    monkeypatch.setattr(Tokenizer, "add_to", with_spaces)
    result = export(local_path("demo:student"), "gguf:q8_0", tmp_path / "out")
    failed = {check.name: check.found for check in result.checks if not check.passed}
    assert failed == {"token ids": "other ones of '<s> [INST] What is 2 + 3?  [/INST] 2 + 3'"}
    assert "a text that is no chat is to begin with a space" in capsys.readouterr().out


def test_a_package_that_opens_gguf_files_is_asked_for_before_anything_is_written(base, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "accelerate" else find_spec(name))
    with pytest.raises(UserError, match=r"accelerate: not installed; pip install 'distill-tune\[gguf\]'"):
        export(base, "gguf:q8_0", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_gguf_files_are_opened_by_llama_cpp_where_its_package_is_installed(base, tmp_path, monkeypatch):
    for otherwise, failing in (
        ({}, []),
        ({"shift": 1}, ["token ids"]),
        ({"template": "lost"}, ["chat template"]),
        ({"scale": 1.5}, ["distributions", "logits"]),
    ):
        monkeypatch.setitem(sys.modules, "llama_cpp", stand_in(**otherwise))
        result = export(base, "gguf:f32", tmp_path / "out")
        assert result.tool == "llama-cpp-python 9.9"
        assert [check.name for check in result.checks if not check.passed] == failing
        assert result.agreement.tokens > 100


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("hff", "did you mean hf"),
        ("torchao", "torchao:int8"),
        ("torchao:int9", "did you mean torchao:int8"),
        ("hf:bf16", "no such format"),
        ("gguf:q4_2", "did you mean gguf:q4_1 or gguf:q4_0"),
    ],
)
def test_formats_that_there_are_not(named, message):
    with pytest.raises(UserError, match=message):
        find_format(named)


def test_kinds_are_named_in_any_case():
    assert find_format("gguf:Q8_0")[1] == "q8_0"
    assert find_format("gguf:Q4_K_M", any_gguf=True)[1] == "q4_k_m"


@pytest.mark.parametrize("kind", ["q4_k_m", "Q6_K", "iq4_xs", "tq1_0"])
def test_kinds_of_llama_cpp_alone_are_told_with_what_to_add(kind):
    with pytest.raises(UserError, match=f"--to gguf:{kind}: is written by llama.cpp's own tools.* add --llama-cpp DIR"):
        find_format(f"gguf:{kind}")


def test_factors_keep_their_dtype(run, tmp_path):
    with pytest.raises(UserError, match="--dtype bf16: adapter keeps its weights as they are"):
        export(run, "adapter", tmp_path / "out", dtype="bf16")
