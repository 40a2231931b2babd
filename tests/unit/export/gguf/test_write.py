"""GGUF files of small models: read by transformers, by gguf and by ourselves, beside the folder they were made of."""

import json
import struct
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from architectures import write_architecture
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from tiny_tokenizer import write_tokenizer
from transformers import AutoModelForCausalLM

from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.export.gguf import KINDS, tensors, write_gguf

SIZE = 420  # rows; the tokenizer has up to 400 tokens
TOKENS = torch.randint(3, 96, (2, 48), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def ours(file: Path, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    config = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(file)})
    checkpoint = models.open_checkpoint("teacher_model", config, None)
    model = models.checked_on_meta("teacher_model", config, checkpoint, torch.float32)
    models.load_weights(model, checkpoint, torch.device("cpu"))
    return model(tokens)


@torch.no_grad()
def theirs(folder: Path, tokens: torch.Tensor = TOKENS, **arguments: str) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **arguments).eval()(tokens).logits


def folder_of(folder: Path, name: str, **changes: object) -> Path:
    write_architecture(folder, name, vocab_size=SIZE, **changes)
    write_tokenizer(folder)
    return folder


def field(file: Path, name: str) -> object:
    found = gguf.GGUFReader(file).get_field(name)
    return None if found is None else found.contents()


NOT_GEMMA = (
    *("llama2", "llama3", "llama_with_biases", "mistral", "ministral", "qwen2", "qwen2_yarn", "qwen3", "phi3"),
    *("phi3_partly_turned", "phi3_longrope"),
)
LAYERS = ["full_attention", "sliding_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in NOT_GEMMA),
        ("llama2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
        ("gemma2", {}),  # whose scores are scaled otherwise than llama.cpp would
        ("gemma3", {}),
        ("gemma3", {"num_hidden_layers": 3, "layer_types": LAYERS[1:] + LAYERS[:1]}),
        ("gemma2", {"num_hidden_layers": 3, "layer_types": LAYERS[1:] + LAYERS[:1]}),
    ],
)
def test_our_own_reader_makes_the_folders_model_of_a_file(tmp_path, name, changes):
    folder = folder_of(tmp_path, name, **changes)
    written = write_gguf(folder, tmp_path / "model.gguf", "f32")
    tokens = TOKENS[:, : written.longest]
    torch.testing.assert_close(ours(written.file, tokens), theirs(folder, tokens), rtol=0, atol=1e-4)


HEADS_OF_256 = {"head_dim": 256, "query_pre_attn_scalar": 256, "rope_parameters": None}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama2", {}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 128}),
        ("gemma2", HEADS_OF_256),
        ("gemma3", HEADS_OF_256),
        ("phi3", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transformers_reads_the_folders_model_in_a_file(tmp_path, name, changes):
    """With settings that its reader knows: it leaves out scaled rope, and sizes of heads that are not the usual."""
    folder = folder_of(tmp_path, name, **changes)
    written = write_gguf(folder, tmp_path / "model.gguf", "f32")
    tokens = TOKENS[:, : written.longest]
    read = theirs(folder, tokens, gguf_file="model.gguf")
    torch.testing.assert_close(read, theirs(folder, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_the_numbers_that_gguf_makes_of_the_weights(tmp_path, kind):
    folder = folder_of(tmp_path, "llama2")
    written = write_gguf(folder, tmp_path / "model.gguf", kind)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(written.file).tensors}
    own = load_file(folder / "model.safetensors")
    least = "q8_0" if kind.startswith("q") else kind
    divided = "f16" if kind.startswith("q") else kind  # rows of 112
    for gguf_name, name, wanted in (
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj.weight", kind),
        ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight", divided),
        ("token_embd.weight", "model.embed_tokens.weight", least),
        ("output.weight", "lm_head.weight", least),
        ("output_norm.weight", "model.norm.weight", "f32"),
    ):
        tensor = found[gguf_name]
        assert tensor.tensor_type.name.lower() == wanted
        raw = gguf.quants.quantize(own[name].numpy(), gguf.GGMLQuantizationType[wanted.upper()])
        numpy.testing.assert_array_equal(tensor.data.view(numpy.uint8).ravel(), raw.view(numpy.uint8).ravel())
    held = sum(int(tensor.n_bytes) for tensor in found.values())
    assert written.bits_per_weight == pytest.approx(8 * held / sum(weight.numel() for weight in own.values()))
    assert field(written.file, "general.file_type") == tensors.file_type(kind)
    read = ours(written.file)
    wanted = theirs(folder).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - read.log_softmax(-1))).sum(-1).mean()
    assert divergence < {"f32": 1e-9, "f16": 1e-6, "bf16": 1e-3, "q8_0": 1e-3}.get(kind, 0.2)


def test_what_is_kept_at_more_bits_is_told(tmp_path):
    written = write_gguf(folder_of(tmp_path, "llama2"), tmp_path / "model.gguf", "q4_0")
    said, *more = written.lines()
    assert f"{written.bits_per_weight:.2f} bits a weight in all" in said
    assert "2 of its matrices are q8_0: embeddings and output layer" in more
    assert "4 of its matrices are f16: rows of 112, which blocks of 32 do not divide" in more


def test_a_weight_in_parts_is_the_weight(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, "llama2")
    whole = write_gguf(folder, tmp_path / "whole.gguf", "q4_1").file.read_bytes()
    monkeypatch.setattr(tensors, "_AT_ONCE", 1000)
    assert write_gguf(folder, tmp_path / "parts.gguf", "q4_1").file.read_bytes() == whole


def test_weights_of_sixteen_bits_are_written_as_they_are(tmp_path):
    folder = folder_of(tmp_path, "qwen2")
    weights = {name: value.bfloat16() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    file = write_gguf(folder, tmp_path / "model.gguf", "bf16").file
    torch.testing.assert_close(ours(file), theirs(folder), rtol=0, atol=1e-4)


def test_a_window_that_llama_cpp_leaves_out_bounds_the_length_that_it_computes_right(tmp_path):
    written = write_gguf(folder_of(tmp_path, "mistral"), tmp_path / "model.gguf", "f32")
    assert field(written.file, "llama.context_length") == written.longest == 8
    assert "the same up to 8 tokens" in written.lines()[1]


def test_phi3s_longer_length_is_said_with_both_factors(tmp_path):
    folder = folder_of(tmp_path, "phi3_longrope", original_max_position_embeddings=64)
    file = write_gguf(folder, tmp_path / "model.gguf", "f32").file
    assert field(file, "phi3.context_length") == 128
    assert field(file, "phi3.rope.scaling.original_context_length") == 64
    found = {tensor.name: tensor.data.tolist() for tensor in gguf.GGUFReader(file).tensors}
    assert found["rope_factors_long.weight"] == [2.0 + i for i in range(8)]


def test_rows_without_a_token_get_one(tmp_path):
    folder = folder_of(tmp_path, "llama2")
    known = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    file = write_gguf(folder, tmp_path / "model.gguf", "f16").file
    tokens, types = (field(file, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    assert len(tokens) == SIZE
    assert tokens[known:] == [f"[PAD{token}]" for token in range(known, SIZE)]
    assert set(types[known:]) == {5}


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("qwen3", {"attention_bias": True}, "biases, which GGUF's qwen3 cannot say"),
        ("gemma3", {"num_hidden_layers": 3, "layer_types": LAYERS}, "layers that slide in no period .fss."),
        ("gemma2", {"final_logit_softcapping": None}, "without a softcap"),
        ("gemma2", {"tie_word_embeddings": False}, "an output layer apart from the embeddings"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "rope_type=dynamic"),
        (
            "qwen2_yarn",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 2.0}},
            "attention_factor=2",
        ),
        ("llama2", {"hidden_act": "gelu_pytorch_tanh"}, "the activation gelu_tanh"),
    ],
)
def test_what_a_file_cannot_say_is_refused_by_name(tmp_path, name, changes, said):
    with pytest.raises(UserError, match=said):
        write_gguf(folder_of(tmp_path, name, **changes), tmp_path / "model.gguf", "f32")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_kind_that_is_not_written_here_is_refused():
    with pytest.raises(UserError, match=r"gguf:q4_k_m: no such kind, there are f32, .*--llama-cpp DIR"):
        write_gguf(Path("nowhere"), Path("model.gguf"), "q4_k_m")


@pytest.mark.parametrize(
    ("value", "kind", "said"), [(numpy.inf, "q8_0", "not finite"), (7e4, "f16", "has 70000, more than float16 holds")]
)
def test_numbers_that_a_kind_cannot_hold_are_refused(tmp_path, value, kind, said):
    folder = folder_of(tmp_path, "llama2")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"layers.1.mlp.up_proj.weight has .*{said.removeprefix('has ')}"):
        write_gguf(folder, tmp_path / "model.gguf", kind)
    assert not list(tmp_path.glob("*.gguf*"))


def test_the_card_and_the_settings_for_sampling_go_along(tmp_path):
    folder = folder_of(tmp_path / "Tiny-Student-1M", "llama2")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: someone/Tiny-Teacher\n---\n# Tiny\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6, "top_k": 20}))
    file = write_gguf(folder, tmp_path / "model.gguf", "f16").file
    assert field(file, "general.name") == "Tiny Student 1M"
    assert field(file, "general.size_label")
    assert field(file, "general.license") == "apache-2.0"
    assert field(file, "general.base_model.0.name") == "Tiny Teacher"
    assert field(file, "general.sampling.top_k") == 20
    assert field(file, "general.sampling.temp") == struct.unpack("f", struct.pack("f", 0.6))[0]


def test_a_name_that_llama_cpp_takes_for_another_tokenizers_is_spelled_otherwise(tmp_path):
    folder = folder_of(tmp_path / "phi3-student", "phi3")
    for name in (None, "My-Phi-3-mini"):
        file = write_gguf(folder, tmp_path / "model.gguf", "f16", name).file
        said = field(file, "general.name").lower()
        assert "phi3" not in said
        assert "phi-3" not in said
