"""Which files of a folder are the model, and what they say, against transformers and peft on the same folder."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.models.quantisation import is_part_of_quantised

TOKENS = torch.arange(1, 12)[None]


def write(folder: Path, kind: str = "llama", seed: int = 0, **changes: object) -> Path:
    shape = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **shape | {"head_dim": 8} | changes)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def component(folder: Path) -> OmegaConf:
    return OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})


def ours(folder: Path) -> torch.Tensor:
    checkpoint = models.open_checkpoint("model", component(folder), None)
    model = models.load_model(component(folder), checkpoint, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        return model(TOKENS)


@torch.no_grad()
def theirs(folder: Path) -> torch.Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits


def check_same(folder: Path) -> None:
    torch.testing.assert_close(ours(folder), theirs(folder), rtol=1e-4, atol=1e-4)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, weights: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file({n: w.contiguous().clone() for n, w in weights.items()}, folder / name, {"format": "pt"})


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- Which files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model")


@pytest.fixture
def other(tmp_path: Path) -> dict[str, torch.Tensor]:
    return weights_of(write(tmp_path / "other", seed=1))


def shards(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    names = sorted(weights)
    weight_map = {}
    for number, part in enumerate((names[:7], names[7:]), 1):
        put(folder, {name: weights[name] for name in part}, f"model-0000{number}-of-00002.safetensors")
        weight_map |= dict.fromkeys(part, f"model-0000{number}-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_one_file_comes_before_an_index_and_safetensors_before_pickles(folder, other):
    shards(folder, other)
    torch.save(other, folder / "pytorch_model.bin")
    put(folder, other, "model.fp16.safetensors")
    put(folder, other, "consolidated.safetensors")
    check_same(folder)
    (folder / "model.safetensors").unlink()  # now the index
    check_same(folder)
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(
        weights_of(folder.parent / "other") | {"lm_head.weight": torch.zeros(96, 32)}, folder / "pytorch_model.bin"
    )
    check_same(folder)


def test_an_older_pickle_is_read(folder):
    torch.save(weights_of(folder), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    check_same(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-00001-of-00002.safetensors", "parts without their model.safetensors.index.json"),
        ("model.fp16.safetensors", "a variant; rename it"),
        ("consolidated.safetensors", "Mistral's own layout"),
        ("original/consolidated.00.pth", "Meta's own layout"),
        ("weights.safetensors", "rename it to model.safetensors if it is"),
        ("shard-00000-model-00001-of-00002.safetensors", "a distributed checkpoint"),
        ("tf_model.h5", "TensorFlow's"),
    ],
)
def test_a_folder_without_the_usual_files_is_told_what_it_has(folder, name, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match=rf"model\.path={folder}: has no weights .*it has {name}: .*{message}"):
        ours(folder)
    with pytest.raises(OSError, match="no file named"):  # nor does transformers read it
        theirs(folder) if "shard" not in name else (_ for _ in ()).throw(OSError("no file named"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, "holds no mapping of names to weights, but a mapping with state_dict"),
        ([1, 2], "holds no mapping of names to weights, but list"),
    ],
)
def test_a_pickle_of_something_else_is_told(folder, content, message):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"pytorch_model\.bin: {message}"):
        ours(folder)


# ---- Names


@pytest.mark.parametrize(
    "rename",
    [lambda n: n.removeprefix("model."), lambda n: f"model.{n}"],
    ids=["a decoder saved alone", "a prefix twice"],
)
def test_names_that_transformers_reads_are_read(folder, rename):
    put(folder, {rename(n): w for n, w in weights_of(folder).items()})
    check_same(folder)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda n: f"module.{n}", r"module\.lm_head\.weight.* it is DistributedDataParallel's"),
        (lambda n: f"_orig_mod.{n}", "torch.compile's"),
        (lambda n: f"model._orig_mod.{n}", "torch.compile's"),
        (lambda n: f"base_model.model.{n}", "PEFT's"),
        (lambda n: f"pretrained_model.{n}", "a value head"),
        (lambda n: f"student.model.{n}", r"the prefix student\.model\. is another program's"),
        (lambda n: n.replace("model.layers", "transformer.h"), "another architecture's"),
    ],
)
@pytest.mark.parametrize("builder", ["from_hf", "torchtune"])
def test_names_of_other_programs_are_refused_by_name(folder, rename, message, builder):
    put(folder, {rename(n): w for n, w in weights_of(folder).items()})
    model, checkpointer = component(folder), None
    if builder == "torchtune":
        model = OmegaConf.create({"_component_": "torchtune.models.llama3_2.llama3_2", **TORCHTUNE})
        checkpointer = OmegaConf.create({"checkpoint_dir": str(folder), "model_type": "LLAMA3_2"})
    checkpoint = models.open_checkpoint("model", model, checkpointer)
    with pytest.raises(UserError, match=f"model does not fit .*{folder}: .*{message}"):
        models.checked_on_meta("model", model, checkpoint)


TORCHTUNE = {
    "vocab_size": 96,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 32,
    "intermediate_dim": 64,
    "max_seq_len": 64,
}

# ---- Tied


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("files", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize("head", ["another", "the same", "alone", "none"])
def test_a_tied_flag_beside_lm_head_means_what_it_means_in_transformers(tmp_path, kind, files, head):
    folder = write(tmp_path / "model", kind, tie_word_embeddings=True)
    weights = weights_of(folder)
    embeddings = weights["model.embed_tokens.weight"]
    if head != "none":
        weights["lm_head.weight"] = embeddings + 0.2 * (head == "another") * torch.randn_like(embeddings)
    if head == "alone":
        del weights["model.embed_tokens.weight"]
    (folder / "model.safetensors").unlink()
    if files == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif files == "shards":
        shards(folder, weights)
    else:
        put(folder, weights)
    check_same(folder)


def test_a_student_whose_weights_are_untied_is_exported_untied(tmp_path):
    from distill_tune import training

    folder = write(tmp_path / "model", tie_word_embeddings=True)
    weights = weights_of(folder)
    put(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].flip(0)})
    checkpoint = models.open_checkpoint("model", component(folder), None)
    model = models.load_model(component(folder), checkpoint, torch.float32, torch.device("cpu"))
    training.export_model(model, checkpoint, tmp_path / "exported", torch.float32)
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(theirs(tmp_path / "exported"), theirs(folder), rtol=1e-4, atol=1e-4)
    check_same(tmp_path / "exported")


@pytest.mark.parametrize("model_type", ["LLAMA3_2", "QWEN2"])
def test_a_builder_that_ties_is_told_of_another_output_layer(tmp_path, model_type):
    kind, builder = ("llama", "llama3_2.llama3_2") if model_type == "LLAMA3_2" else ("qwen2", "qwen2.qwen2")
    folder = write(tmp_path / "model", kind, tie_word_embeddings=True)
    weights = weights_of(folder)
    arguments = TORCHTUNE | ({"tie_word_embeddings": True} if kind == "qwen2" else {})
    model = OmegaConf.create({"_component_": f"torchtune.models.{builder}", **arguments})
    checkpointer = OmegaConf.create({"checkpoint_dir": str(folder), "model_type": model_type})

    def check() -> None:
        models.checked_on_meta("model", model, models.open_checkpoint("model", model, checkpointer))

    check()
    put(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"]})
    check()
    put(folder, weights | {"lm_head.weight": weights["model.embed_tokens.weight"].flip(0)})
    with pytest.raises(UserError, match=r"ties its output layer .*another lm_head\.weight: build it with .*from_hf"):
        check()


# ---- Quantised


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quantised with gptq .*HuggingFace, with gptqmodel optimum"),
        ({"quant_method": "fp8"}, "quantised with fp8"),
        ({"load_in_8bit": True}, "quantised with bitsandbytes"),
        ({"quant_method": "mine"}, "quantised with mine"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_quantization_config_is_never_ignored(folder, quantization, message, inside):
    set_config(
        folder,
        **({"text_config": {"quantization_config": quantization}} if inside else {"quantization_config": quantization}),
    )
    with pytest.raises(
        UserError, match=rf"model\.path={folder}: is {message}.*look plain: .*delete quantization_config"
    ):
        models.open_checkpoint("model", component(folder), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, w: {n: w.to(torch.int8)} if "q_proj" in n else {n: w}, r"q_proj\.weight is torch\.int8"),
        (
            lambda n, w: {n: w, n.replace("weight", "weight_scale"): w[:1]} if "q_proj" in n else {n: w},
            "weight_scale is a",
        ),
        (
            lambda n, w: {n.replace("weight", "qweight"): w} if "q_proj" in n else {n: w},
            "qweight is a part of quantised",
        ),
    ],
)
def test_quantised_weights_are_told_without_a_quantization_config(folder, change, message):
    put(folder, {k: v for n, w in weights_of(folder).items() for k, v in change(n, w).items()})
    with pytest.raises(UserError, match=f"is quantised .*{message}.*has no quantization_config"):
        models.open_checkpoint("model", component(folder), None)


def test_the_parts_of_quantised_weights_are_known_by_name():
    layer = "model.layers.0.mlp.up_proj"
    for part in (
        "qweight",
        "scales",
        "weight.absmax",
        "weight.quant_state.bitsandbytes__nf4",
        "weight_scale_inv",
        "SCB",
    ):
        assert is_part_of_quantised(f"{layer}.{part}")
    for name in ("model.norm.weight", f"{layer}.weight", f"{layer}.bias", f"{layer}.lora_A.weight"):
        assert not is_part_of_quantised(name)


# ---- Adapters


def adapter(base: Path, folder: Path, **config: object) -> torch.Tensor:
    """An adapter's folder; what the model with it gives."""
    torch.manual_seed(1)
    settings = {"r": 4, "target_modules": ["q_proj", "up_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings | config)
    ).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ("modules_to_save" in name or name.endswith("bias") or "magnitude" in name):
            torch.nn.init.uniform_(parameter, 0.2, 0.6)
    model.save_pretrained(folder)
    with torch.no_grad():
        return model(TOKENS).logits


CONFIGS = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {r"layers\.\d\.mlp.up_proj": 5}},
    "DoRA": {"use_dora": True},
    "on the head": {"target_modules": ["q_proj", "lm_head"]},
    "on the embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "another head": {"modules_to_save": ["lm_head"]},
    "other embeddings": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "other norms": {"modules_to_save": ["norm", "input_layernorm"]},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied"])
def test_an_adapter_is_merged_into_its_base_as_peft_runs_it(tmp_path, config, tied, capsys):
    base = write(tmp_path / "base", tie_word_embeddings=tied)
    wanted = adapter(base, tmp_path / "adapter", **config)
    torch.testing.assert_close(ours(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)
    told = f"model.path={tmp_path / 'adapter'}: read with its adapter merged into the model {base}"
    assert capsys.readouterr().out.count(told) == 1
    for file in (tmp_path / "adapter").glob("adapter_*"):  # a model and its adapter in one folder
        shutil.copy(file, base)
    torch.testing.assert_close(ours(base), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("qwen2", {"bias": "all"}),
        ("qwen2", {"bias": "lora_only", "target_modules": ["q_proj", "v_proj"]}),
        ("qwen2", {"lora_bias": True, "target_modules": ["q_proj"]}),
        ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
        ("gemma3_text", {"target_modules": "all-linear"}),
    ],
    ids=["all biases", "some biases", "biases of factors", "fused", "gemma"],
)
def test_adapters_of_other_families_are_merged(tmp_path, kind, config):
    base = write(tmp_path / "base", kind)
    wanted = adapter(base, tmp_path / "adapter", **config)
    torch.testing.assert_close(ours(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)


def test_an_adapter_in_pickles_with_its_base_beside_it_is_read(tmp_path, monkeypatch):
    wanted = adapter(write(tmp_path / "base"), tmp_path / "adapter")
    factors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    torch.save(factors, tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    for name in ("../base", "base", "~/base"):
        edit(tmp_path / "adapter", base_model_name_or_path=name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path if name == "base" else "/")
        torch.testing.assert_close(ours(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_base_in_the_cache_of_the_hub_or_where_download_puts_it_is_found(tmp_path, monkeypatch):
    wanted = adapter(write(tmp_path / "models" / "base"), tmp_path / "adapter")
    edit(tmp_path / "adapter", base_model_name_or_path="someone/base")
    monkeypatch.chdir(tmp_path)
    torch.testing.assert_close(ours(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)
    snapshot = tmp_path / "hub" / "models--someone--base" / "snapshots" / "1234"
    shutil.move(tmp_path / "models" / "base", snapshot)
    (tmp_path / "hub" / "models--someone--base" / "refs").mkdir()
    (tmp_path / "hub" / "models--someone--base" / "refs" / "main").write_text("1234")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.testing.assert_close(ours(tmp_path / "adapter"), wanted, rtol=1e-4, atol=1e-4)


def shorter(factors: dict) -> dict:
    return {n: w[:, :2] for n, w in factors.items()}


@pytest.mark.parametrize(
    ("config", "factors", "message"),
    [
        (
            {"base_model_name_or_path": "someone/nothing"},
            None,
            "is an adapter of someone/nothing, which is not here .looked in",
        ),
        ({"base_model_name_or_path": None}, None, "names no base_model_name_or_path"),
        ({"peft_type": "LOHA"}, None, "an adapter of the type LOHA"),
        ({"init_lora_weights": "pissa"}, None, "init_lora_weights=pissa is not read here; merge it with peft"),
        ({"layer_replication": [[0, 2]]}, None, "layer_replication=.* is not read here"),
        ({"trainable_token_indices": [1]}, None, "trainable_token_indices"),
        ({"r": 8}, None, "do not fit the rank 8"),
        ({}, shorter, "do not fit the rank 4"),
        ({}, lambda f: {n: w for n, w in f.items() if "lora_B" not in n}, "which do not make an update"),
        (
            {},
            lambda f: {n.replace("q_proj", "qq"): w for n, w in f.items()},
            r"layers\.0\.self_attn\.qq: its base has no",
        ),
        (
            {},
            lambda f: f | {"base_model.model.lm_head.weight": torch.zeros(97, 32)},
            r"is \[97, 32\], its base's is \[96",
        ),
        ({}, lambda f: {}, "is empty"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(tmp_path, config, factors, message):
    folder = tmp_path / "adapter"
    adapter(write(tmp_path / "base"), folder)
    edit(folder, **config)
    if factors:
        put(folder, factors(load_file(folder / "adapter_model.safetensors")), "adapter_model.safetensors")
    with pytest.raises(UserError, match=rf"path={folder}: .*{message}"):
        ours(folder)


def test_an_adapter_without_factors_or_on_another_adapter_is_told(tmp_path, capsys):
    base = write(tmp_path / "base")
    wanted = theirs(base)
    adapter(base, tmp_path / "adapter")
    shutil.copy(tmp_path / "adapter" / "adapter_config.json", base)
    torch.testing.assert_close(ours(base), wanted, rtol=1e-4, atol=1e-4)
    assert "read without an adapter: adapter_config.json is there, its weights are not" in capsys.readouterr().out
    shutil.copy(tmp_path / "adapter" / "adapter_model.safetensors", base)
    with pytest.raises(UserError, match=r"its base .*base has an adapter of its own"):
        ours(tmp_path / "adapter")


def test_a_student_that_starts_from_an_adapter_is_exported_whole_alone(tmp_path, capsys):
    from distill_tune import training

    folder = tmp_path / "adapter"
    wanted = adapter(write(tmp_path / "base"), folder)
    student = OmegaConf.create(
        {"_component_": "distill_tune.models.lora_from_hf", "path": str(folder), "lora_attn_modules": ["q_proj"]}
    )
    checkpoint = models.open_checkpoint("model", student, None)
    model = models.load_model(student, checkpoint, torch.float32, torch.device("cpu"))
    assert not training.export_adapter(model, checkpoint, tmp_path / "out")
    assert "no adapter/: it would fit" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    training.export_model(model, checkpoint, tmp_path / "model", torch.float32)
    torch.testing.assert_close(theirs(tmp_path / "model"), wanted, rtol=1e-4, atol=1e-4)


def test_a_config_that_is_of_other_weights_is_refused_before_it_is_exported(tmp_path):
    folder = write(tmp_path)
    checkpointer = OmegaConf.create(
        {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder),
            "checkpoint_files": ["model.safetensors"],
            "model_type": "LLAMA3_2",
        }
    )
    shape = {"vocab_size": 96, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_seq_len": 64}
    model = OmegaConf.create({"_component_": "torchtune.models.llama3.llama3", "intermediate_dim": 64, **shape})
    checkpoint = models.open_checkpoint("model", model, checkpointer)
    # llama3 has an output layer of its own.
    models.checked_on_meta("model", model, checkpoint)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    checkpoint = models.open_checkpoint("model", model, checkpointer)
    with pytest.raises(UserError, match=r"config\.json, .* shapes differ: tok_embeddings.weight \[96, 32\].*100"):
        models.checked_on_meta("model", model, checkpoint)
